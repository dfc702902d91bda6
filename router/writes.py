"""Writes: split by shard, sent to all shards at once, acknowledged when every shard has them on disk.

Not atomic over shards: after an error any part may have been written. Writes are idempotent, so that callers retry the whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.deadline import Deadline
from router.shard_calls import Call, ShardCalls
from router.validation import Points
from vectorfleet import limits
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2, shard_service_pb2_grpc, storage_pb2

MUTATION_BYTES_MAX: Final = limits.CALL_BYTES_MAX // 2
"""More goes in several calls: vectors made from texts can pass the limit of the call that brought the texts."""


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write."""

    affected: int
    """Points inserted or replaced, or that existed and were deleted."""
    seqnos: dict[int, int]
    """Shard → its last seqno."""


class Writes:
    """Sends mutations to primaries."""

    def __init__(self, calls: ShardCalls) -> None:
        self._calls = calls

    async def upsert(self, record: CollectionRecord, points: Points, deadline: Deadline) -> Written:
        """Writes checked points whose ids do not repeat. Raises what `ShardCalls.call` does."""
        mutations = {shard: list(_upserts(points, rows)) for shard, rows in rows_by_shard(record, points.ids).items()}
        return await self._write(record, mutations, deadline)

    async def delete(self, record: CollectionRecord, ids: Sequence[str], deadline: Deadline) -> Written:
        """Deletes points by checked ids. Raises what `ShardCalls.call` does."""
        ids = list(dict.fromkeys(ids))
        mutations = {
            shard: [storage_pb2.Mutation(delete=storage_pb2.DeleteBatch(ids=[ids[row] for row in rows]))]
            for shard, rows in rows_by_shard(record, ids).items()
        }
        return await self._write(record, mutations, deadline)

    async def _write(
        self, record: CollectionRecord, mutations: dict[int, list[storage_pb2.Mutation]], deadline: Deadline
    ) -> Written:
        affected = 0
        seqnos: dict[int, int] = {}
        for turn in range(max(map(len, mutations.values()))):
            calls = {shard: _call(record, own[turn]) for shard, own in mutations.items() if turn < len(own)}
            for shard, response in (await self._calls.call_all(record, calls, deadline, primary=True)).items():
                affected += response.affected
                seqnos[shard] = max(response.seqno, seqnos.get(shard, 0))
        return Written(affected, seqnos)


def rows_by_shard(record: CollectionRecord, ids: Sequence[str]) -> dict[int, NDArray[np.int64]]:
    """Shard → the positions of its ids, ascending."""
    shards = placement_for(record).shards_of(ids)
    return {int(shard): np.flatnonzero(shards == shard) for shard in np.unique(shards)}


def _call(record: CollectionRecord, mutation: storage_pb2.Mutation) -> Call[shard_service_pb2.WriteResponse]:
    def start(
        stub: shard_service_pb2_grpc.ShardServiceAsyncStub, shard: ShardAssignment, epoch: int, timeout_s: float
    ) -> Awaitable[shard_service_pb2.WriteResponse]:
        request = shard_service_pb2.WriteRequest(
            collection_uid=record.uid, shard=shard.shard, epoch=epoch, term=shard.term, mutation=mutation
        )
        return stub.Write(request, timeout=timeout_s)

    return start


def _upserts(points: Points, rows: NDArray[np.int64]) -> Iterator[storage_pb2.Mutation]:
    sizes = np.full(len(rows), 4 * points.vectors.shape[1] + limits.ID_BYTES_MAX)
    if points.payloads:
        sizes += [len(points.payloads[row]) for row in rows]
    for part in np.split(rows, np.flatnonzero(np.diff(np.cumsum(sizes) // MUTATION_BYTES_MAX)) + 1):
        whole = len(part) == len(points.ids)
        vectors = points.vectors if whole else points.vectors[part]
        batch = storage_pb2.UpsertBatch(ids=[points.ids[row] for row in part], vectors=vectors.tobytes())
        if points.payloads:
            batch.payloads.extend(points.payloads[row] for row in part)
        yield storage_pb2.Mutation(upsert=batch)
