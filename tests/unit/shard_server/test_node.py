"""Whole nodes over real gRPC with the real engine; only etcd is played."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from shard_server import searching
from shard_server.codebook_store import checksum_of
from shard_server.data_dir import DataDir
from shard_server.durable import write_durably
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from shard_server.node import Node, NodeSettings
from tests.unit.shard_server.fake_replica import TIMEOUT_S, collection, ids_of
from vectorfleet import errors, limits
from vectorfleet.cluster.shard_map import CodebookRecord, CollectionRecord
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.internal.v1.shard_service_pb2_grpc import ShardServiceStub
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb

DIM = 8
READY = health_pb2.HealthCheckRequest(service="readiness")


class Served:
    """A node that runs, and a channel to it."""

    def __init__(self, node_id: str, address: str, channel: grpc.aio.Channel) -> None:
        self.node_id = node_id
        self.address = address
        self.channel = channel
        self.stub: Any = ShardServiceStub(channel)

    async def write(self, mutation: storage_pb2.Mutation, shard: int = 0, **changes: Any) -> pb.WriteResponse:
        request = pb.WriteRequest(
            **{"collection_uid": "u1", "shard": shard, "epoch": 1, "term": 1, "mutation": mutation, **changes}
        )
        answer: pb.WriteResponse = await self.stub.Write(request, timeout=TIMEOUT_S)
        return answer

    async def search(self, queries: NDArray[np.float32], *shards: int, **changes: Any) -> list[pb.ShardResult]:
        request = pb.SearchRequest(
            **{
                "collection_uid": "u1",
                "targets": [pb.ShardTarget(shard=shard) for shard in shards or (0,)],
                "vectors": queries.tobytes(),
                "query_count": len(queries),
                "k": 3,
                "exact": True,
                **changes,
            }
        )
        answer: pb.SearchResponse = await self.stub.Search(request, timeout=TIMEOUT_S)
        return list(answer.results)

    async def describe(self) -> pb.DescribeResponse:
        answer: pb.DescribeResponse = await self.stub.Describe(pb.DescribeRequest(), timeout=TIMEOUT_S)
        return answer

    async def ready(self) -> bool:
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(READY, timeout=TIMEOUT_S)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


Start = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture
def cluster() -> StaticCluster:
    return StaticCluster()


@pytest.fixture
def start(tmp_path: Path, cluster: StaticCluster) -> Start:
    """Starts a node by its name; the same name finds its data again."""

    @contextlib.asynccontextmanager
    async def started(node_id: str = "n1", **engine: Any) -> AsyncIterator[Served]:
        data = DataDir(tmp_path / node_id, node_id)
        data.join(())  # tests give shards to nodes that have never run, as no controller does
        stopping = asyncio.Event()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        settings = NodeSettings(search_threads=2, engine=EngineSettings(**{"seal_age_s": 0.1, "idle_s": 0.1, **engine}))
        node = Node(data, StaticCoordinator(cluster), settings)
        running = asyncio.create_task(node.run(stopping, ready.set_result))
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        try:
            async with grpc.aio.insecure_channel(ready.result(), options=CHANNEL_OPTIONS) as channel:
                yield Served(node_id, ready.result(), channel)
        finally:
            stopping.set()
            assert await running, "everything was closed"
            data.close()

    return started


def upsert(ids: list[str], vectors: NDArray[np.float32], payloads: list[bytes] | None = None) -> storage_pb2.Mutation:
    return storage_pb2.Mutation(
        upsert=storage_pb2.UpsertBatch(ids=ids, vectors=vectors.tobytes(), payloads=payloads or [])
    )


def rows(rng: np.random.Generator, count: int, dim: int = DIM) -> NDArray[np.float32]:
    return rng.standard_normal((count, dim)).astype(np.float32)


async def error_of(call: Awaitable[Any]) -> errors.VectorfleetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.from_rpc_error(caught.value)


async def until(check: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(3 * TIMEOUT_S):
            while not await check():  # noqa: ASYNC110 (it asks another process, so to speak)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


async def create(cluster: StaticCluster, *nodes: str, **options: Any) -> CollectionRecord:
    record = collection("u1", nodes, **{"dim": DIM, **options})
    await StaticCoordinator(cluster).create_collection(record)
    return cluster.state.collections[record.name]


async def test_points_go_in_and_come_out(start: Start, cluster: StaticCluster, rng: np.random.Generator) -> None:
    await create(cluster, "n1")
    vectors = rows(rng, 20)
    ids = [f"p{number:02}" for number in range(20)]
    payloads = [b'{"n": %d}' % number for number in range(20)]
    async with start() as node:
        written = await node.write(upsert(ids, vectors, payloads))
        assert (written.seqno, written.affected) == (20, 20)
        (result,) = await node.search(vectors[:2], with_payload=True, with_vector=True)
        assert np.frombuffer(result.counts, "<u4").tolist() == [3, 3]
        scores = np.frombuffer(result.scores, "<f4").reshape(2, 3)
        distances = np.linalg.norm(vectors[:2, None] - vectors[None], axis=2)
        np.testing.assert_allclose(scores, np.sort(distances, axis=1)[:, :3], rtol=1e-5, atol=1e-6)
        assert result.ids[0] == "p00"
        assert result.payloads[0] == payloads[0]
        assert np.array_equal(np.frombuffer(result.vectors, "<f4").reshape(6, DIM)[0], vectors[0])

        deleted = await node.write(storage_pb2.Mutation(delete=storage_pb2.DeleteBatch(ids=["p00", "absent"])))
        assert (deleted.seqno, deleted.affected) == (22, 1)
        (result,) = await node.search(vectors[:1], k=20)
        assert sorted(result.ids) == ids[1:]

        fetched = await node.stub.Fetch(
            pb.FetchRequest(collection_uid="u1", ids=["p07", "p00", "p03"], with_vector=True), timeout=TIMEOUT_S
        )
        assert [(point.id, point.payload) for point in fetched.points] == [("p07", payloads[7]), ("p03", payloads[3])]
        assert fetched.points[0].vector == vectors[7].tobytes()
        assert fetched.points[0].version > 0
        scanned = await node.stub.Scan(pb.ScanRequest(collection_uid="u1", after_id="p15", limit=3), timeout=TIMEOUT_S)
        assert ([point.id for point in scanned.points], scanned.end) == (["p16", "p17", "p18"], False)
        scanned = await node.stub.Scan(pb.ScanRequest(collection_uid="u1", after_id="p17", limit=9), timeout=TIMEOUT_S)
        assert ([point.id for point in scanned.points], scanned.end) == (["p18", "p19"], True)


async def test_what_a_node_holds_is_searched_before_it_is_ready(
    start: Start, cluster: StaticCluster, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(cluster, "n1")
    async with start() as node:
        await node.write(upsert(["a"], rows(rng, 1)))
    warmed: list[tuple[int, bool]] = []

    def warm_up(replica: Replica) -> None:
        searching_first(replica)
        warmed.append((replica.identity.shard, "n1" in cluster.state.nodes))

    searching_first = searching.warm_up
    monkeypatch.setattr(searching, "warm_up", warm_up)
    async with start():
        assert warmed == [(0, False)]


async def test_everything_is_there_after_a_restart(
    start: Start, cluster: StaticCluster, rng: np.random.Generator
) -> None:
    await create(cluster, "n1", "n1")
    vectors = rows(rng, 300)
    async with start() as node:
        await asyncio.gather(*(node.write(upsert(ids_of(shard, 2, 300), vectors), shard) for shard in (0, 1)))
    async with start() as node:
        results = await node.search(vectors[:5], 1, 0, k=1)
        assert [list(result.ids) for result in results] == [ids_of(shard, 2, 5) for shard in (1, 0)]
        assert (await node.write(upsert(ids_of(0, 2, 301)[300:], vectors[:1]), 0)).seqno == 301


async def test_many_writers_share_commits(start: Start, cluster: StaticCluster, rng: np.random.Generator) -> None:
    await create(cluster, "n1")
    vectors = rows(rng, 200)
    async with start() as node:
        answers = await asyncio.gather(*(node.write(upsert([str(n)], vectors[n : n + 1])) for n in range(200)))
        assert sorted(answer.seqno for answer in answers) == list(range(1, 201))
        (result,) = await node.search(vectors, k=1)
        assert list(result.ids) == [str(n) for n in range(200)]


async def test_a_target_that_fails_costs_the_others_nothing(
    start: Start, cluster: StaticCluster, tmp_path: Path, rng: np.random.Generator
) -> None:
    await create(cluster, "n1", "n1", "n2")
    vectors = rows(rng, 10)
    async with start() as node:
        for shard in (0, 1):
            await node.write(upsert(ids_of(shard, 3, 10), vectors), shard)
    write_durably(tmp_path / "n1" / "replicas" / "u1" / "1" / "store" / "CURRENT", b"damaged\n")
    async with start() as node:
        results = await node.search(vectors[:1], 0, 1, 2, k=1)
        assert [result.error_reason for result in results] == ["", "DATA_LOSS", "STALE_SHARD_MAP"]
        assert list(results[0].ids) == ids_of(0, 3, 1)
        described = (await node.describe()).replicas
        assert [one.state.status for one in described] == [
            cluster_pb.REPLICA_STATUS_SERVING,
            cluster_pb.REPLICA_STATUS_FAILED,
        ]
        assert described[1].state.message


async def test_a_search_waits_for_the_write_that_it_must_see(
    start: Start, cluster: StaticCluster, rng: np.random.Generator
) -> None:
    await create(cluster, "n1")
    vectors = rows(rng, 2)
    async with start() as node:
        await node.write(upsert(["a"], vectors[:1]))
        late = asyncio.create_task(node.search(vectors[:1], targets=[pb.ShardTarget(shard=0, min_seqno=2)]))
        await asyncio.sleep(0.05)
        assert not late.done()
        await node.write(upsert(["b"], vectors[1:]))
        assert len((await late)[0].ids) == 2
        request = pb.SearchRequest(
            collection_uid="u1",
            targets=[pb.ShardTarget(min_seqno=99)],
            vectors=vectors[:1].tobytes(),
            query_count=1,
            k=1,
        )
        answer = await node.stub.Search(request, timeout=1.0)
        assert answer.results[0].error_reason == "DEADLINE_EXCEEDED"


async def test_bad_requests_are_refused_and_change_nothing(
    start: Start, cluster: StaticCluster, rng: np.random.Generator
) -> None:
    await create(cluster, "n1")
    one = rows(rng, 1)
    async with start() as node:
        await node.write(upsert(["kept"], one))
        for mutation, reason, field in [
            (storage_pb2.Mutation(), "INVALID_FIELD", "mutation"),
            (upsert([], rows(rng, 0)), "INVALID_FIELD", "mutation.upsert.ids"),
            (storage_pb2.Mutation(delete=storage_pb2.DeleteBatch()), "INVALID_FIELD", "mutation.delete.ids"),
            (upsert(["x"], rows(rng, 1, DIM + 1)), "WRONG_DIMENSION", "mutation.upsert.vectors"),
            (upsert(["x", "y"], one), "WRONG_DIMENSION", "mutation.upsert.vectors"),
            (upsert(["x"], one, [b"{}", b"{}"]), "INVALID_FIELD", "mutation.upsert.payloads"),
        ]:
            error = await error_of(node.write(mutation))
            assert (error.reason, error.field) == (reason, field)
        for changes, field in [
            ({"k": 0}, "k"),
            ({"k": limits.K_MAX + 1}, "k"),
            ({"query_count": 0}, "query_count"),
            ({"targets": []}, "targets"),
        ]:
            assert (await error_of(node.search(one, **changes))).field == field
        (result,) = await node.search(rows(rng, 1, DIM - 1))
        assert result.error_reason == "WRONG_DIMENSION"
        assert (await error_of(node.write(upsert(["x"], one), term=9))).reason == "STALE_SHARD_MAP"
        for call in (
            node.stub.Scan(pb.ScanRequest(collection_uid="u1", limit=0), timeout=TIMEOUT_S),
            node.stub.Sample(pb.SampleRequest(collection_uid="u1"), timeout=TIMEOUT_S).read(),
            node.stub.TrainCodebook(pb.TrainCodebookRequest(collection_uid="u1"), timeout=TIMEOUT_S),
            node.stub.FetchCodebook(pb.FetchCodebookRequest(collection_uid="../x"), timeout=TIMEOUT_S).read(),
        ):
            assert (await error_of(call)).reason == "INVALID_FIELD"
        absent = pb.FetchCodebookRequest(collection_uid="u1", version=1)
        error = await error_of(node.stub.FetchCodebook(absent, timeout=TIMEOUT_S).read())
        assert error.code is grpc.StatusCode.NOT_FOUND
        scanned = await node.stub.Scan(pb.ScanRequest(collection_uid="u1", limit=10), timeout=TIMEOUT_S)
        assert [point.id for point in scanned.points] == ["kept"]


async def test_answers_stay_below_the_message_limit(start: Start, cluster: StaticCluster) -> None:
    # More than a page, and more than a message when four times over: no call writes so much that a busy disk is late.
    dim, count, a_write = limits.DIM_MAX, 320, 40
    await create(cluster, "n1", dim=dim)
    payload = b'{"t": "%s"}' % (b"x" * 60_000)
    zeros = np.zeros((a_write, dim), np.float32)
    ids = [f"{n:04}" for n in range(count)]
    async with start() as node:
        for first in range(0, count, a_write):
            await node.write(upsert(ids[first : first + a_write], zeros, [payload] * a_write))
        page = await node.stub.Scan(
            pb.ScanRequest(collection_uid="u1", limit=count, with_vector=True), timeout=TIMEOUT_S
        )
        assert not page.end
        assert 0 < page.ByteSize() < limits.CALL_BYTES_MAX
        fetch = pb.FetchRequest(collection_uid="u1", ids=ids * 4, with_vector=True)
        assert (await error_of(node.stub.Fetch(fetch, timeout=TIMEOUT_S))).reason == "RESPONSE_TOO_LARGE"
        for changes in ({"with_vector": True}, {"with_payload": True}):
            assert (await error_of(node.search(zeros[:20], **{"k": count, **changes}))).reason == "RESPONSE_TOO_LARGE"


async def test_a_node_is_trained_sampled_and_gives_its_codebook_away(
    start: Start, cluster: StaticCluster, rng: np.random.Generator
) -> None:
    record = await create(cluster, "n1", "n2", metric=3)
    vectors = rows(rng, 4000)
    async with start("n1") as one, start("n2") as two:
        nodes = (one, two)
        for shard, node in enumerate(nodes):
            ids = ids_of(shard, 2, 2000)
            await node.write(upsert(ids, vectors[shard * 2000 : (shard + 1) * 2000]), shard)
        request = pb.TrainCodebookRequest(
            collection_uid="u1",
            epoch=cluster.state.epoch,
            version=1,
            kind=1,
            nlist=8,
            m=4,
            seed=2**63,
            sources=[pb.SampleSource(shard=s, address=node.address, limit=1500) for s, node in enumerate(nodes)],
        )
        first, second = await asyncio.gather(
            *(one.stub.TrainCodebook(request, timeout=3 * TIMEOUT_S) for _ in range(2))
        )
        assert first == second
        assert first.sampled_points == 3000
        again = await one.stub.TrainCodebook(request, timeout=TIMEOUT_S)
        assert again.checksum == first.checksum
        content = b"".join(
            [chunk.chunk async for chunk in one.stub.FetchCodebook(
                pb.FetchCodebookRequest(collection_uid="u1", version=1), timeout=TIMEOUT_S
            )]
        )  # fmt: skip
        assert checksum_of(content) == first.checksum
        codebook = CodebookRecord(1, first.checksum, 8, 4, 4000, "n1")
        await StaticCoordinator(cluster).update_collection(replace(record, codebook=codebook))

        async def settled() -> bool:
            described = [(await node.describe()).replicas[0] for node in nodes]
            return all(replica.settled and replica.state.codebook_version == 1 for replica in described)

        await until(settled, "both nodes encoded their shards with the codebook")
        state = (await two.describe()).replicas[0].state
        assert (state.points, state.indexed_points, state.buffered_points) == (2000, 2000, 0)
        assert state.index_bytes > 0
        (result,) = await two.search(vectors[2000:2010], 1, k=1, exact=False, oversample=1000)
        assert list(result.ids) == ids_of(1, 2, 10)
    async with start("n2") as two:
        assert (await two.describe()).replicas[0].state.codebook_version == 1


async def test_samples_are_stored_points_and_never_more_than_asked(
    start: Start, cluster: StaticCluster, rng: np.random.Generator
) -> None:
    await create(cluster, "n1")
    vectors = rows(rng, 500)
    async with start() as node:
        await node.write(upsert([str(n) for n in range(500)], vectors))
        for limit, expected in ((100, 100), (10_000, 500)):
            request = pb.SampleRequest(collection_uid="u1", limit=limit, seed=1)
            parts = [part.vectors async for part in node.stub.Sample(request, timeout=TIMEOUT_S)]
            sample = np.frombuffer(b"".join(parts), "<f4").reshape(-1, DIM)
            assert len(sample) == expected
            assert {row.tobytes() for row in sample} <= {row.tobytes() for row in vectors}


async def test_a_node_describes_itself(start: Start, cluster: StaticCluster) -> None:
    await create(cluster, "n1", "n1")
    async with start() as node:
        described = await node.describe()
        assert described.epoch == cluster.state.epoch
        assert (described.node.id, described.node.address, described.node.replicas) == ("n1", node.address, 2)
        assert described.node.resident_bytes > described.node.mapped_resident_bytes > 0
        assert described.node.disk_free_bytes > 0
        assert [one.settled for one in described.replicas] == [True, True]
        assert all(one.state.primary for one in described.replicas)
        assert cluster.state.nodes["n1"].address == node.address
        assert await node.ready()
    assert "n1" not in cluster.state.nodes, "a clean stop gives the registration back"


async def test_a_node_is_live_but_not_ready_before_etcd_answers(
    tmp_path: Path, cluster: StaticCluster, rng: np.random.Generator, start: Start
) -> None:
    await create(cluster, "n1")
    vectors = rows(rng, 3)
    async with start() as node:
        await node.write(upsert(["a", "b", "c"], vectors))

    class Away(StaticCoordinator):
        async def start(self) -> None:
            await asyncio.Event().wait()

    data = DataDir(tmp_path / "n1")
    port = free_port()
    stopping = asyncio.Event()
    node_away = Node(data, Away(cluster), NodeSettings(port=port))
    running = asyncio.create_task(node_away.run(stopping, lambda address: pytest.fail("it cannot be ready")))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        held = Served("n1", f"127.0.0.1:{port}", channel)
        assert not await held.ready()
        (result,) = await held.search(vectors, k=1)
        assert list(result.ids) == ["a", "b", "c"], "it serves what it held"
        assert (await held.write(upsert(["d"], vectors[:1]))).seqno == 4
    stopping.set()
    assert await running
    data.close()


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_port_that_is_taken_is_said_plainly(tmp_path: Path, start: Start, cluster: StaticCluster) -> None:
    async with start() as node:
        data = DataDir(tmp_path / "n2")
        settings = NodeSettings(port=int(node.address.rpartition(":")[2]))
        with pytest.raises(OSError, match="cannot listen on"):
            await Node(data, StaticCoordinator(cluster), settings).run(asyncio.Event(), lambda address: None)
        data.close()
