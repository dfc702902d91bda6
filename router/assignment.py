"""What the controller decides: which node takes which shard, when to train, with which shape, on how large a sample.

Pure functions of records and counts, so that every router decides alike and tests need no cluster. GetCollection asks
`training_due` too: a collection is not settled while its next training is due.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from vectorfleet import limits
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.v1 import types_pb2

RETRAIN_GROWTH: Final = 8
"""A codebook is trained anew when the collection is this many times as large as at the last training."""
LIST_POINTS_MIN: Final = 39
"""Points an inverted list below which FAISS holds a centroid for badly trained."""
LIST_POINTS_SAMPLED: Final = 64
"""Points of the sample for each inverted list; FAISS looks at no more than 256."""
SAMPLE_POINTS_MIN: Final = 65_536
"""PQ codebooks want this much whatever the number of lists."""
SAMPLE_BYTES_MAX: Final = 512 * 1024 * 1024


class CodebookShape(NamedTuple):
    """The parameters of one training."""

    nlist: int
    m: int


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


def training_due(record: CollectionRecord, points: int) -> bool:
    """Whether a collection of so many points wants its first or its next codebook."""
    if record.index.kind == types_pb2.INDEX_KIND_FLAT:
        return False
    if record.codebook is None:
        return points >= record.index.train_points
    return points >= RETRAIN_GROWTH * max(1, record.codebook.trained_points)


def codebook_shape(kind: int, dim: int, points: int, nlist: int = 0, m: int = 0) -> CodebookShape:
    """Chooses nlist and m where the creator of the collection did not.

    nlist: the power of two nearest to 4·√points, but not so large that a list would get fewer than 39 points of the sample.
    m: half of the dimensions for 4-bit codes (FastScan), a quarter for 8-bit codes, rounded up.

    Args:
        kind: `vectorfleet.v1.IndexKind` as a number; not FLAT.
        dim: of the collection.
        points: of the collection, now.
        nlist: the creator's; 0: choose. Cut to the size of the sample, without which training is impossible.
        m: the creator's; 0: choose.
    """
    sample = sample_points_max(dim, points)
    if nlist:
        nlist = max(1, min(nlist, sample))
    else:
        wanted = 2 ** round(math.log2(4 * math.sqrt(max(1, points))))
        nlist = min(wanted, _power_of_two_below(sample // LIST_POINTS_MIN), limits.NLIST_MAX)
    return CodebookShape(nlist, m or math.ceil(dim / (4 if kind == types_pb2.INDEX_KIND_IVF_PQ else 2)))


def sample_points_max(dim: int, points: int) -> int:
    """Points that a training's memory allows."""
    return min(points, SAMPLE_BYTES_MAX // (4 * dim))


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


def _power_of_two_below(value: int) -> int:
    return 1 << (max(1, value).bit_length() - 1)
