"""What the controller decides: which node takes which shard, when to train, on how large a sample.

Pure functions of records and counts, so that every router decides alike and tests need no cluster. GetCollection asks
`training_due` too: a collection is not settled while its next training is due.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from vectorfleet.cluster.codebook_shape import codebook_shape, sample_points_max
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.v1 import types_pb2

RETRAIN_GROWTH: Final = 8
"""A codebook is trained anew when the collection is this many times as large as at the last training."""
RETRAIN_LISTS: Final = 2
"""And in a pause when this many times as many lists would suit: how many a collection ends with then follows from its points, and
not from where growth happened to bring about the last training."""
RETRAIN_TURNOVER: Final = 0.5
"""And when this share of its points was written again or deleted since: lists fit the points that they were trained on. From
10,000 points on, √points ÷ 200: a training's cost grows with points times lists, and what it costs each write does not."""
LIST_POINTS_SAMPLED: Final = 64
"""Points of the sample for each inverted list; FAISS looks at no more than 256."""
SAMPLE_POINTS_MIN: Final = 65_536
"""PQ codebooks want this much whatever the number of lists."""


def assign_shards(
    record: CollectionRecord, nodes: Mapping[str, NodeInfo], collections: Iterable[CollectionRecord]
) -> CollectionRecord:
    """Gives every shard that has no primary to nodes: those with the fewest replicas first, ties by name.

    Args:
        record: the collection; shards that are assigned stay where they are.
        nodes: the live ones, by id.
        collections: all there are, whose replicas count as load.

    Returns:
        The record with its new assignments; unchanged where there are no nodes.
    """
    if not nodes:
        return record
    load: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for other in collections:
        if other.uid != record.uid:
            load.update(node for shard in other.shards for node in shard.replicas)
    for shard in record.shards:
        own.update(shard.replicas)
    assigned: list[ShardAssignment] = []
    for shard in record.shards:
        if not shard.primary:
            ranked = sorted(nodes, key=lambda node: (load[node] + own[node], own[node], node))
            chosen = tuple(ranked[: record.replicas])
            own.update(chosen)
            shard = replace(shard, primary=chosen[0], replicas=chosen, in_sync=chosen, term=shard.term + 1)
        assigned.append(shard)
    return replace(record, shards=tuple(assigned))


def training_due(record: CollectionRecord, points: int, seqnos: int, *, quiet: bool) -> bool:
    """Whether a collection wants its first or its next codebook.

    Args:
        record: the collection.
        points: that live.
        seqnos: that its shards have given away, together.
        quiet: whether its shards have nothing else left to do.
    """
    if record.index.kind == types_pb2.INDEX_KIND_FLAT:
        return False
    if record.codebook is None:
        return points >= record.index.train_points
    trained = record.codebook
    if points >= RETRAIN_GROWTH * max(1, trained.trained_points):
        return True
    if quiet:
        index = record.index
        wanted = codebook_shape(index.kind, record.dim, points, len(record.shards), index.nlist, index.m)
        if wanted.nlist >= RETRAIN_LISTS * trained.nlist:
            return True
    written = seqnos - trained.trained_seqno if trained.trained_seqno else 0
    replaced = written - max(0, points - trained.trained_points)
    return points >= record.index.train_points and replaced >= points * max(RETRAIN_TURNOVER, math.sqrt(points) / 200)


def sample_limits(nlist: int, dim: int, points_of_shard: Mapping[int, int]) -> dict[int, int]:
    """How many points each shard contributes to the sample: in proportion to what it holds.

    Args:
        nlist: of the codebook to be trained.
        dim: of the collection.
        points_of_shard: live points by shard number.

    Returns:
        Limits by shard number, each at least 1; shards without points are left out.
    """
    points = sum(points_of_shard.values())
    wanted = min(sample_points_max(dim, points), max(LIST_POINTS_SAMPLED * nlist, SAMPLE_POINTS_MIN))
    return {shard: -(-wanted * held // points) for shard, held in sorted(points_of_shard.items()) if held}
