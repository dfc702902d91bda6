"""One call to one shard, for writes and reads that need an answer: by the newest map, once more where it was stale, with
errors that say where.

Searches do not come here: they take what they get (fanout.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, TypeVar

from router.deadline import Deadline
from router.freshness import newer_state
from router.nodes import NodePool
from router.replica_choice import read_replica
from vectorfleet import errors
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2_grpc
from vectorfleet.telemetry.work import current

T = TypeVar("T")
Call: TypeAlias = Callable[
    ["shard_service_pb2_grpc.ShardServiceAsyncStub", ShardAssignment, int, float],  # a type that only checkers see
    Awaitable[T],
]
"""Starts an RPC: (stub, the shard as it stands, the map's epoch, seconds left)."""

_PASSED_ON: Final = frozenset(
    {
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "DESTINATION_REFUSED",
        "DESTINATION_UNAVAILABLE",
        "DISK_FULL",
        "MEMORY_FULL",
        "OVERLOADED",
        "RESPONSE_TOO_LARGE",
        "STALE_SHARD_MAP",
    }
)
_RENAMED: Final = {
    "UNREACHABLE": "SHARD_UNAVAILABLE",
    "SHARD_UNAVAILABLE": "SHARD_UNAVAILABLE",
    "SHUTTING_DOWN": "SHARD_UNAVAILABLE",
    "MESSAGE_TOO_LARGE": "RESPONSE_TOO_LARGE",
}


class ShardCalls:
    """Calls shards wherever the newest map says that they live."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._draw = random.Random()  # noqa: S311 (no secret)

    async def call(
        self,
        record: CollectionRecord,
        shard: int,
        call: Call[T],
        deadline: Deadline,
        *,
        primary: bool = False,
    ) -> T:
        """Calls one shard.

        Args:
            record: its collection.
            shard: its number.
            call: starts the RPC; called once more after a stale map.
            deadline: the caller's.
            primary: True: the primary alone will do.

        Raises:
            VectorfleetError: naming the shard and its node.
        """
        state = self._coordinator.state
        try:
            return await self._try(state, record, shard, call, deadline, primary=primary)
        except errors.Unavailable as error:
            if error.reason != "STALE_SHARD_MAP":
                raise
        state = await newer_state(self._coordinator, state.epoch, deadline)
        return await self._try(state, record, shard, call, deadline, primary=primary)

    async def call_all(
        self, record: CollectionRecord, calls: Mapping[int, Call[T]], deadline: Deadline, *, primary: bool = False
    ) -> dict[int, T]:
        """Calls several shards at once and waits for all of them; raises the gravest error of those that failed."""
        outcomes = await asyncio.gather(
            *(self.call(record, shard, call, deadline, primary=primary) for shard, call in calls.items()),
            return_exceptions=True,
        )
        answers: dict[int, T] = {}
        failures: list[BaseException] = []
        for shard, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                failures.append(outcome)
            else:
                answers[shard] = outcome
        if failures:  # what a retry does not mend comes first
            raise min(failures, key=lambda error: getattr(error, "retryable", False))
        return answers

    async def _try(
        self,
        state: ClusterState,
        record: CollectionRecord,
        number: int,
        call: Call[T],
        deadline: Deadline,
        *,
        primary: bool,
    ) -> T:
        newest = state.by_uid(record.uid)
        if newest is None:
            raise errors.NotFound(f"collection {record.name!r} was deleted meanwhile")
        shard = next(shard for shard in newest.shards if shard.shard == number)
        node_id = shard.primary if primary else read_replica(shard, self._nodes.standings(state), self._draw)
        place = f"shard {number} of {record.name} on node {node_id}"
        if not node_id:
            raise errors.Unavailable(f"shard {number} of {record.name} is not assigned to a node yet")
        node = self._nodes.find(node_id, state)
        if node is None or node.circuit.open:
            raise errors.Unavailable(f"{place} does not answer")
        patience = Deadline(deadline.answer_by_s())
        work = current().part("node", calls_out=True)
        work.facts.update(node=node_id, shard=number)
        try:
            with work:
                return await node.call(call(node.stub, shard, state.epoch, patience.remaining_s()))
        except errors.VectorfleetError as error:
            raise _of_shard(error, place) from error


def _of_shard(error: errors.VectorfleetError, place: str) -> errors.VectorfleetError:
    """What a shard's error means to the caller of the router, who knows nothing of shards' requests."""
    reason = error.reason if error.reason in _PASSED_ON else _RENAMED.get(error.reason, "INTERNAL")
    return errors.error_for(reason, f"{place}: {error.message}")
