"""A shard server of a few lines: real gRPC, brute force over a dictionary, and faults on demand."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from router.server import Router, RouterSettings
from shard_server import search_stream
from vectorfleet import errors, serving
from vectorfleet.cluster.shard_map import NodeInfo
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import cluster_service_pb2, types_pb2

Shard = dict[str, tuple[bytes, bytes, int]]
"""id → vector, payload, version."""


@dataclass
class FakeNode(pb_grpc.ShardServiceServicer):
    """Holds whatever it is asked to hold.

    Attributes:
        refuse: shard → the error that it answers with.
        stale: how many calls are refused as stale first.
        queries_max: a search with more would pass the message limit.
        hits_max: a search that is asked for more hits of a query, with what they carry, would.
        gate: searches, writes and descriptions wait for it.
        busy: searches alone wait for it.
        searches: the search requests that came.
        cancelled: those whose asker went before they were answered.
        lag_s: how long its next search takes, in addition.
        metric: of all collections here.
    """

    node_id: str
    metric: int = types_pb2.METRIC_L2
    shards: defaultdict[tuple[str, int], Shard] = field(default_factory=lambda: defaultdict(dict))
    refuse: dict[int, errors.VectorfleetError] = field(default_factory=dict)
    stale: int = 0
    queries_max: int = 1024
    hits_max: int = 10_000
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    searches: list[pb.SearchRequest] = field(default_factory=list)
    cancelled: list[pb.SearchRequest] = field(default_factory=list)
    lag_s: Callable[[], float] = lambda: 0.0
    status: int = cluster_service_pb2.REPLICA_STATUS_SERVING
    coordinator: StaticCoordinator | None = None
    seqno: int = 0

    def __post_init__(self) -> None:
        self.gate.set()
        self.busy.set()

    async def Write(self, request: pb.WriteRequest, context: Any) -> pb.WriteResponse:  # noqa: N802
        await self._enter(request.shard)
        shard = self.shards[request.collection_uid, request.shard]
        mutation = request.mutation
        affected = 0
        if mutation.WhichOneof("kind") == "upsert":
            rows = len(mutation.upsert.ids)
            size = len(mutation.upsert.vectors) // rows
            payloads = mutation.upsert.payloads or [b""] * rows
            for row, point_id in enumerate(mutation.upsert.ids):
                self.seqno += 1
                vector = mutation.upsert.vectors[row * size : (row + 1) * size]
                shard[point_id] = vector, payloads[row], self.seqno
            affected = rows
        else:
            affected = sum(shard.pop(point_id, None) is not None for point_id in mutation.delete.ids)
            self.seqno += len(mutation.delete.ids)
        return pb.WriteResponse(seqno=self.seqno, affected=affected)

    async def Search(self, request: pb.SearchRequest, context: Any) -> pb.SearchResponse:  # noqa: N802
        self.searches.append(request)
        try:
            await self._enter()
            await self.busy.wait()
            if lag_s := self.lag_s():
                await asyncio.sleep(lag_s)
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        carried = request.with_payload or request.with_vector
        if request.query_count > self.queries_max or (carried and request.k > self.hits_max):
            raise errors.ResourceExhausted("too much", reason="RESPONSE_TOO_LARGE")
        return pb.SearchResponse(results=[self._search(request, target.shard) for target in request.targets])

    async def SearchStream(  # noqa: N802
        self, requests: AsyncIterator[pb.SearchStreamRequest], context: Any
    ) -> AsyncIterator[pb.SearchStreamResponse]:
        async def search(request: pb.SearchRequest, timeout_s: float, response: pb.SearchResponse) -> None:
            response.CopyFrom(await self.Search(request, context))

        async for response in search_stream.answer_stream(requests, search, asyncio.Event()):
            yield response

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchResponse:  # noqa: N802
        await self._enter(request.shard)
        shard = self.shards[request.collection_uid, request.shard]
        points = [self._point(shard, i, request.with_vector) for i in request.ids if i in shard]
        return pb.FetchResponse(points=points)

    async def Scan(self, request: pb.ScanRequest, context: Any) -> pb.ScanResponse:  # noqa: N802
        await self._enter(request.shard)
        shard = self.shards[request.collection_uid, request.shard]
        ids = sorted((i for i in shard if i > request.after_id), key=str.encode)
        points = [self._point(shard, i, request.with_vector) for i in ids[: request.limit]]
        return pb.ScanResponse(points=points, end=len(ids) <= request.limit)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        await self.gate.wait()
        assert self.coordinator is not None
        replicas = [
            pb.ReplicaDescription(
                collection_uid=record.uid,
                shard=shard.shard,
                settled=True,
                state=cluster_service_pb2.ReplicaState(
                    node=self.node_id,
                    status=self.status,  # type: ignore[arg-type]
                    points=len(self.shards[record.uid, shard.shard]),
                ),
            )
            for record in self.coordinator.state.collections.values()
            for shard in record.shards
            if self.node_id in shard.replicas and request.collection_uid in ("", record.uid)
        ]
        return pb.DescribeResponse(node=cluster_service_pb2.Node(id=self.node_id), replicas=replicas)

    async def _enter(self, shard: int | None = None) -> None:
        await self.gate.wait()
        if self.stale:
            self.stale -= 1
            raise errors.Unavailable("old map", reason="STALE_SHARD_MAP")
        if shard in self.refuse:
            raise self.refuse[shard]

    def _search(self, request: pb.SearchRequest, number: int) -> pb.ShardResult:
        if number in self.refuse:
            error = self.refuse[number]
            return pb.ShardResult(shard=number, error_reason=error.reason, error_message=error.message)
        shard = self.shards[request.collection_uid, number]
        queries = np.frombuffer(request.vectors, "<f4").reshape(request.query_count, -1)
        result = pb.ShardResult(shard=number)
        counts, scores = [], []
        for query in queries:
            ranked = sorted((self._score(query, np.frombuffer(v, "<f4")), i) for i, (v, _, _) in shard.items())
            best = ranked[: request.k]
            counts.append(len(best))
            scores += [abs(score) if self.metric == types_pb2.METRIC_L2 else -score for score, _ in best]
            result.ids.extend(i for _, i in best)
            if request.with_payload:
                result.payloads.extend(shard[i][1] for _, i in best)
            if request.with_vector:
                result.vectors += b"".join(shard[i][0] for _, i in best)
        result.counts = np.array(counts, "<u4").tobytes()
        result.scores = np.array(scores, "<f4").tobytes()
        return result

    def _score(self, a: Any, b: Any) -> float:
        return float(np.linalg.norm(a - b)) if self.metric == types_pb2.METRIC_L2 else -float(a @ b)

    @staticmethod
    def _point(shard: Shard, point_id: str, with_vector: bool) -> types_pb2.Point:
        vector, payload, version = shard[point_id]
        return types_pb2.Point(id=point_id, vector=vector if with_vector else b"", payload=payload, version=version)


@dataclass
class Fleet:
    """A real router over fake nodes."""

    cluster: StaticCluster
    nodes: dict[str, FakeNode]
    channel: grpc.aio.Channel
    stopping: asyncio.Event
    router: asyncio.Task[None]
    address: str


async def fake_nodes(
    stack: AsyncExitStack, cluster: StaticCluster, *names: str, metric: int = types_pb2.METRIC_L2
) -> dict[str, FakeNode]:
    """Starts fake nodes and registers them; they stop with the stack."""
    nodes = {}
    for name in names:
        node = nodes[name] = FakeNode(name, metric, coordinator=StaticCoordinator(cluster))
        server = serving.new_server()
        pb_grpc.add_ShardServiceServicer_to_server(node, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        stack.callback(node.gate.set)
        stack.callback(node.busy.set)
        assert node.coordinator is not None
        await node.coordinator.register(NodeInfo(name, f"127.0.0.1:{port}", "test"))
    return nodes


@asynccontextmanager
async def fleet(*names: str, metric: int = types_pb2.METRIC_L2, **settings: Any) -> AsyncIterator[Fleet]:
    """Starts fake nodes, registers them, and starts a router that leads."""
    async with AsyncExitStack() as stack:
        cluster = StaticCluster()
        nodes = await fake_nodes(stack, cluster, *names, metric=metric)
        stopping = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        router = Router(StaticCoordinator(cluster), RouterSettings("router-0", **settings))
        running = asyncio.create_task(router.run(stopping, ready.set_result))
        async with asyncio.timeout(20):
            address = await ready
        channel = grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
        try:
            yield Fleet(cluster, nodes, channel, stopping, running, address)
        finally:
            await channel.close()
            for node in nodes.values():
                node.gate.set()
                node.busy.set()
            stopping.set()
            async with asyncio.timeout(20):
                await running
