"""Payloads and vectors looked up for the winners alone, after the search.

Usually each shard sends what its hits carry along with them: a second round of calls costs more than a few hits too many. But
where the hits of a shard would pass a message with all that they carry, the winners of all shards together may still fit one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from router.deadline import Deadline
from router.merge import ShardAnswer, Winners
from router.reads import Reads
from router.searches import Share
from router.validation import SearchOptions
from vectorfleet import errors, limits
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.v1 import types_pb2

_NO_SHARD: Final = -1


async def looked_up(
    reads: Reads, record: CollectionRecord, share: Share, options: SearchOptions, deadline: Deadline
) -> Share:
    """Gives the hits of a share what `options` say that they carry.

    Contents are those of a moment after the search; a hit that was deleted in between is left out.

    Raises:
        ResourceExhausted: RESPONSE_TOO_LARGE, they do not fit one answer either.
        VectorfleetError: a shard that answered the search did not answer this.
    """
    bounds = share.winners.offsets[share.first_query : share.first_query + share.queries + 1]
    rows = slice(int(bounds[0]), int(bounds[-1]))
    ids = share.winners.ids[rows]
    found = await _fetch(reads, record, list(dict.fromkeys(ids)), options, deadline)
    there = np.fromiter((point_id in found for point_id in ids), np.bool_, len(ids))
    points = [found[point_id] for point_id in ids if point_id in found]
    scores = share.winners.scores[rows][there]
    offsets = np.concatenate(([0], np.cumsum(there)))[bounds - bounds[0]]
    answer = ShardAnswer(
        _NO_SHARD,
        np.diff(offsets).astype(np.uint32),
        scores,
        [point.id for point in points],
        [point.payload for point in points] if options.with_payload else (),
        b"".join(point.vector for point in points) if options.with_vector else b"",
        sum(one.matching_points for one in share.answers),
    )
    nowhere = np.zeros(len(points), np.int64)
    winners = Winners(offsets, nowhere, np.arange(len(points)), scores, list(answer.ids))
    return Share([answer], winners, 0, share.queries, share.coverage)


async def _fetch(
    reads: Reads, record: CollectionRecord, ids: list[str], options: SearchOptions, deadline: Deadline
) -> dict[str, types_pb2.Point]:
    found: dict[str, types_pb2.Point] = {}
    size = 0
    for first in range(0, len(ids), limits.POINTS_PER_CALL_MAX):
        some = ids[first : first + limits.POINTS_PER_CALL_MAX]
        for point in await reads.get(record, some, deadline, with_vector=options.with_vector):
            found[point.id] = point
            size += len(point.payload) * options.with_payload + len(point.vector)
        if size > limits.CALL_BYTES_MAX:
            raise errors.ResourceExhausted(
                "what the hits carry passes 64 MiB: ask for fewer queries, hits, vectors or payloads",
                reason="RESPONSE_TOO_LARGE",
            )
    return found
