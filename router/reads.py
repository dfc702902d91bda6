"""Reads by id and in order: all of them need every shard that they ask, so that an absent point is truly absent."""

from __future__ import annotations

import base64
import heapq
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from router import validation
from router.deadline import Deadline
from router.describing import describe_collection, replica_on, why_not_serving
from router.freshness import newer_state
from router.nodes import NodePool
from router.shard_calls import Call, ShardCalls
from router.writes import rows_by_shard
from vectorfleet import errors, limits
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2, shard_service_pb2_grpc
from vectorfleet.v1 import point_service_pb2, types_pb2

PAGE_BYTES: Final = 32 * 1024 * 1024
"""A page of a scroll ends here, though fewer points than asked for: the next page goes on."""
_TOKEN_SEPARATOR: Final = "\n"  # noqa: S105 (a uid never holds it; an id after it may)

assert PAGE_BYTES + limits.PAYLOAD_BYTES_MAX + 4 * limits.DIM_MAX < limits.CALL_BYTES_MAX


class Reads:
    """Get, scroll and count."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool, calls: ShardCalls) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._calls = calls

    async def get(
        self, record: CollectionRecord, ids: Sequence[str], deadline: Deadline, *, with_vector: bool
    ) -> list[types_pb2.Point]:
        """Returns the points that exist, in the order asked, each once.

        Raises:
            ResourceExhausted: RESPONSE_TOO_LARGE.
            VectorfleetError: what `ShardCalls.call` says.
        """
        ids = list(dict.fromkeys(ids))
        calls = {
            shard: _fetch(record, [ids[row] for row in rows], with_vector)
            for shard, rows in rows_by_shard(record, ids).items()
        }
        answers = await self._calls.call_all(record, calls, deadline)
        found = {point.id: point for answer in answers.values() for point in answer.points}
        if sum(map(_size, found.values())) > limits.CALL_BYTES_MAX:
            raise errors.ResourceExhausted(
                "the points pass 64 MiB: ask for fewer ids, or without vectors", reason="RESPONSE_TOO_LARGE"
            )
        return [found[point_id] for point_id in ids if point_id in found]

    async def scroll(
        self, record: CollectionRecord, page_size: int, page_token: str, deadline: Deadline, *, with_vector: bool
    ) -> point_service_pb2.ScrollResponse:
        """Returns the next points in the order of their ids. Raises what `get` does."""
        after_id = _after_id(page_token, record)
        runs = {shard: _Run(after_id) for shard in placement_for(record).shards_to_search()}
        limit = min(limits.SCROLL_PAGE_MAX, page_size // len(runs) + 16)
        await self._refill(record, runs, limit, deadline, with_vector=with_vector)
        heads = [(run.points[0].id, shard) for shard, run in runs.items() if run.points]
        heapq.heapify(heads)
        page = point_service_pb2.ScrollResponse()
        size = 0
        while heads and len(page.points) < page_size and size < PAGE_BYTES:
            _, shard = heapq.heappop(heads)
            run = runs[shard]
            point = run.points.popleft()
            page.points.append(point)
            size += _size(point)
            if not run.points and not run.end and len(page.points) < page_size:
                await self._refill(record, {shard: run}, limit, deadline, with_vector=with_vector)
            if run.points:
                heapq.heappush(heads, (run.points[0].id, shard))
        if page.points and any(run.points or not run.end for run in runs.values()):
            page.next_page_token = _page_token(record, page.points[-1].id)
        return page

    async def count(self, record: CollectionRecord, deadline: Deadline) -> int:
        """Counts live points. Raises `Unavailable` or `DataLoss` where a shard does not say its number."""
        state = self._coordinator.state
        points, why = await self._count(record, state, deadline)
        if isinstance(why, errors.Unavailable):  # perhaps the shard has moved
            state = await newer_state(self._coordinator, state.epoch, deadline)
            newest = state.by_uid(record.uid)
            if newest is None:
                raise errors.NotFound(f"collection {record.name!r} was deleted meanwhile")
            points, why = await self._count(newest, state, deadline)
        if why is not None:
            raise why
        return points

    async def _count(
        self, record: CollectionRecord, state: ClusterState, deadline: Deadline
    ) -> tuple[int, errors.VectorfleetError | None]:
        # A number that lacks a shard is no answer: the caller's whole time is for it.
        descriptions = await describe_collection(
            self._nodes, state, record, deadline, patience_s=deadline.remaining_s()
        )
        whys = (why_not_serving(descriptions, record, shard) for shard in record.shards)
        replicas = (replica_on(descriptions, shard.primary, record.uid, shard.shard) for shard in record.shards)
        points = sum(replica.state.points for replica in replicas if replica is not None)
        return points, next((why for why in whys if why is not None), None)

    async def _refill(
        self, record: CollectionRecord, runs: Mapping[int, _Run], limit: int, deadline: Deadline, *, with_vector: bool
    ) -> None:
        """Asks shards for the points that come next."""
        calls = {shard: _scan(record, run.after_id, limit, with_vector) for shard, run in runs.items()}
        for shard, answer in (await self._calls.call_all(record, calls, deadline)).items():
            runs[shard].add(answer)


@dataclass(slots=True)
class _Run:
    """Points of one shard, in order, as far as they were asked for."""

    after_id: str
    """The last id that was asked for so far."""
    points: deque[types_pb2.Point] = field(default_factory=deque)
    end: bool = False
    """No points lie beyond these."""

    def add(self, answer: shard_service_pb2.ScanResponse) -> None:
        self.points.extend(answer.points)
        self.end = answer.end
        if answer.points:
            self.after_id = answer.points[-1].id
        elif not answer.end:
            raise errors.InternalError("a shard answered a scan with nothing, and says that there is more")


def _fetch(record: CollectionRecord, ids: Sequence[str], with_vector: bool) -> Call[shard_service_pb2.FetchResponse]:
    def start(
        stub: shard_service_pb2_grpc.ShardServiceAsyncStub, shard: ShardAssignment, epoch: int, timeout_s: float
    ) -> Awaitable[shard_service_pb2.FetchResponse]:
        request = shard_service_pb2.FetchRequest(
            collection_uid=record.uid, shard=shard.shard, epoch=epoch, ids=ids, with_vector=with_vector
        )
        return stub.Fetch(request, timeout=timeout_s)

    return start


def _scan(
    record: CollectionRecord, after_id: str, limit: int, with_vector: bool
) -> Call[shard_service_pb2.ScanResponse]:
    def start(
        stub: shard_service_pb2_grpc.ShardServiceAsyncStub, shard: ShardAssignment, epoch: int, timeout_s: float
    ) -> Awaitable[shard_service_pb2.ScanResponse]:
        request = shard_service_pb2.ScanRequest(
            collection_uid=record.uid,
            shard=shard.shard,
            epoch=epoch,
            after_id=after_id,
            limit=limit,
            with_vector=with_vector,
        )
        return stub.Scan(request, timeout=timeout_s)

    return start


def _size(point: types_pb2.Point) -> int:
    return len(point.vector) + len(point.payload) + 2 * len(point.id) + 32


def _page_token(record: CollectionRecord, last_id: str) -> str:
    return base64.urlsafe_b64encode(f"{record.uid}{_TOKEN_SEPARATOR}{last_id}".encode()).decode()


def _after_id(page_token: str, record: CollectionRecord) -> str:
    """The id after which a page begins; "" for the first page."""
    if not page_token:
        return ""
    try:
        uid, separator, after_id = base64.urlsafe_b64decode(page_token.encode()).decode().partition(_TOKEN_SEPARATOR)
    except ValueError:
        uid = separator = after_id = ""
    if not separator or uid != record.uid or not 1 <= len(after_id.encode()) <= limits.ID_BYTES_MAX:
        validation.refuse("page_token", f"this is no page token of collection {record.name}")
    return after_id
