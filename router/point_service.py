"""`vectorfleet.v1.PointService`: from public requests on points to their answers; each step lives elsewhere."""
# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from router import tokens, validation
from router.budget import Budgets
from router.bulk import write_stream
from router.catalog import Catalog
from router.deadline import Deadline
from router.embedding import Embedder, Purpose
from router.reads import Reads
from router.texts import embed_texts
from router.validation import Points
from router.writes import Writes, Written
from vectorfleet import limits
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.telemetry.work import current
from vectorfleet.v1 import point_service_pb2 as pb
from vectorfleet.v1 import point_service_pb2_grpc as pb_grpc

NAME: Final = pb.DESCRIPTOR.services_by_name["PointService"].full_name
POINT_BYTES: Final = 512
"""What a point without its vector is taken to be; the limits of messages bound what it is."""
CHECK_ON_LOOP_BYTES_MAX: Final = 256 * 1024
"""Larger requests are checked in a thread, so that others are not held up."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class PointService(pb_grpc.PointServiceServicer):
    """Writes and reads points by id."""

    def __init__(self, catalog: Catalog, writes: Writes, reads: Reads, embedder: Embedder, budgets: Budgets) -> None:
        self._catalog = catalog
        self._writes = writes
        self._reads = reads
        self._embedder = embedder
        self._budget = budgets.writes
        self._read_budget = budgets.reads

    async def Upsert(self, request: pb.UpsertRequest, context: Context) -> pb.UpsertResponse:
        """Inserts or replaces points."""
        size = request.ByteSize()
        deadline = _deadline(context)
        async with asyncio.timeout_at(deadline.at_s):
            with self._budget.holding(size):
                record = self._find(request.collection)
                if request.HasField("packed"):
                    if request.points:
                        validation.refuse("packed", "points and packed exclude each other")
                    points = await _checked(size, validation.packed_points, request.packed, record.dim, record.metric)
                else:
                    points = await self._points(request, record, size, deadline)
                work = current()
                work.facts["points"] = len(points.ids)
                work.lap("embed" if work.stages else "validate")
                written = await self._writes.upsert(record, points.last_of_each_id(), deadline)
        return pb.UpsertResponse(upserted=written.affected, consistency_token=_token(record, written))

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        """Deletes points."""
        deadline = _deadline(context)
        async with asyncio.timeout_at(deadline.at_s):
            record = self._find(request.collection)
            written = await self._writes.delete(record, validation.point_ids(request.ids, "ids"), deadline)
        return pb.DeleteResponse(deleted=written.affected, consistency_token=_token(record, written))

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Returns points by id."""
        deadline = _deadline(context)
        async with asyncio.timeout_at(deadline.at_s):
            record = self._find(request.collection)
            ids = validation.point_ids(request.ids, "ids")
            with self._read_budget.holding(_points_bytes(len(ids), record, request.with_vector)):
                points = await self._reads.get(record, ids, deadline, with_vector=request.with_vector)
        return pb.GetResponse(points=points)

    async def Scroll(self, request: pb.ScrollRequest, context: Context) -> pb.ScrollResponse:
        """Pages through all points."""
        deadline = _deadline(context)
        async with asyncio.timeout_at(deadline.at_s):
            record = self._find(request.collection)
            size = validation.page_size(request.page_size, limits.SCROLL_PAGE_DEFAULT, limits.SCROLL_PAGE_MAX)
            with self._read_budget.holding(_points_bytes(size, record, request.with_vector)):
                return await self._reads.scroll(
                    record, size, request.page_token, deadline, with_vector=request.with_vector
                )

    async def Count(self, request: pb.CountRequest, context: Context) -> pb.CountResponse:
        """Counts live points."""
        deadline = _deadline(context)
        async with asyncio.timeout_at(deadline.at_s):
            return pb.CountResponse(points=await self._reads.count(self._find(request.collection), deadline))

    async def BulkUpsert(
        self, requests: AsyncIterator[pb.BulkUpsertRequest], context: Context
    ) -> pb.BulkUpsertResponse:
        """Upserts a stream of batches. The stream has the caller's deadline; each batch has the default one at most."""
        remaining_s = context.time_remaining()
        whole = None if remaining_s is None else Deadline.after(remaining_s)
        first = await anext(aiter(requests), None)
        if first is None:
            validation.refuse("packed", "the stream carries no points")
        record = self._find(first.collection)

        async def batches() -> AsyncIterator[Points]:
            yield await self._batch(first, record)
            async for request in requests:
                if request.collection != record.name:
                    validation.refuse("collection", f"the stream began with collection {record.name!r}")
                yield await self._batch(request, record)

        async def write(points: Points) -> Written:
            size = _bytes_of(points)
            await self._budget.room_for(size)
            with self._budget.holding(size):
                deadline = Deadline.after(limits.CALL_TIMEOUT_DEFAULT_S)
                return await self._writes.upsert(record, points, deadline if whole is None else min(deadline, whole))

        written = await write_stream(batches(), write)
        return pb.BulkUpsertResponse(upserted=written.affected, consistency_token=_token(record, written))

    def _find(self, name: str) -> CollectionRecord:
        record = self._catalog.find(validation.collection_name(name))
        current().facts["collection"] = record.name
        return record

    async def _batch(self, request: pb.BulkUpsertRequest, record: CollectionRecord) -> Points:
        # While there is no room, the stream is not read on, and gRPC's flow control holds its sender back.
        await self._budget.room_for(request.ByteSize())
        points = await _checked(request.ByteSize(), validation.packed_points, request.packed, record.dim, record.metric)
        return points.last_of_each_id()

    async def _points(
        self, request: pb.UpsertRequest, record: CollectionRecord, size: int, deadline: Deadline
    ) -> Points:
        if not 1 <= len(request.points) <= limits.POINTS_PER_CALL_MAX:
            validation.refuse(
                "points",
                f"a call carries 1 to {limits.POINTS_PER_CALL_MAX} points; this one has {len(request.points)}",
            )
        ids, rows, payloads = await _checked(size, validation.points, request.points, record.dim, record.metric)
        if rows.texts:
            current().lap("validate")
        vectors = await embed_texts(
            self._embedder, rows, record, Purpose.DOCUMENT, lambda row: f"points[{row}].text", deadline
        )
        return Points(ids, vectors, payloads if any(payloads) else [])


async def _checked(size: int, check: Callable[..., T], *arguments: object) -> T:
    if size <= CHECK_ON_LOOP_BYTES_MAX:
        return check(*arguments)
    return await asyncio.to_thread(check, *arguments)


def _bytes_of(points: Points) -> int:
    return points.vectors.nbytes + sum(map(len, points.payloads))


def _points_bytes(points: int, record: CollectionRecord, with_vector: bool) -> int:
    return points * (POINT_BYTES + with_vector * 4 * record.dim)


def _deadline(context: Context) -> Deadline:
    return Deadline.of_caller(context.time_remaining(), limits.CALL_TIMEOUT_DEFAULT_S)


def _token(record: CollectionRecord, written: Written) -> bytes:
    return tokens.issue(record.uid, written.seqnos)
