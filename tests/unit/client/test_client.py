"""Both clients against a real gRPC server: what is sent, what comes back, what is tried again and how it fails."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from vectorfleet import _codec as codec
from vectorfleet import errors, limits
from vectorfleet.internal.v1 import token_pb2
from vectorfleet.v1 import types_pb2

AWAY = errors.Unavailable("a shard is away")


def test_the_whole_life_of_a_collection(client: Any, fake: FakeCluster) -> None:
    made = client.create_collection("films", dim=2, metric="l2", shards=3, index=vectorfleet.IndexOptions(nlist=8))
    assert (made.name, made.dim, made.metric, made.shards, made.index.nlist) == ("films", 2, "l2", 3, 8)
    written = client.upsert("films", ids=["a", "b", 3], vectors=[[0, 0], [1, 0], [5, 5]], payloads=[{"n": 1}, None, {}])
    assert written.upserted == 3
    assert written.consistency_token
    assert client.count("films") == 3
    found = client.search("films", vectors=[0.9, 0], k=2, with_payload=True, with_vector=True)
    assert found.ids.tolist() == [["b", "a"]]
    assert found.scores[0] == pytest.approx([0.1, 0.9])
    assert [hit.payload for hit in found.hits[0]] == [None, {"n": 1}]
    assert found.hits[0][0].vector.tolist() == [1.0, 0.0]
    assert found.coverage.complete
    points = client.get("films", ids=["3", "nobody", "a"], with_vector=True)
    assert [(one.id, one.payload, one.vector.tolist()) for one in points] == [
        ("3", {}, [5, 5]),
        ("a", {"n": 1}, [0, 0]),
    ]
    assert client.get("films", ids=["a"])[0].vector is None
    assert [one.id for one in client.scroll("films", page_size=2)] == ["3", "a", "b"]
    assert client.delete("films", ids=["a", "nobody"]).deleted == 1
    for name in ("one", "two", "three", "four"):
        client.create_collection(name, dim=1)
    listed = client.list_collections()
    assert [one.name for one in listed] == sorted(fake.shelves)
    assert listed[0].progress is None
    assert client.get_collection("films").progress.points == 2
    client.delete_collection("films")
    with pytest.raises(vectorfleet.NotFound) as caught:
        client.count("films")
    assert caught.value.reason == "COLLECTION_NOT_FOUND"


def test_texts(client: Any, fake: FakeCluster) -> None:
    client.create_collection("t", embedding_model="m")
    assert client.upsert("t", ids=range(300), texts=[f"text {n}" for n in range(300)]).upserted == 300
    assert fake.calls["Upsert"] == 3
    assert client.search("t", texts="text 7", k=1).scores.shape == (1, 1)
    assert len(client.search("t", texts=["a", "b"], k=1)) == 2
    client.create_collection("v", dim=2)
    with pytest.raises(vectorfleet.FailedPrecondition):
        client.upsert("v", ids=["a"], texts=["b"])


def test_many_points_go_in_several_calls_at_once(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=4)
    together = threading.Barrier(codec.VECTOR_CALLS_IN_FLIGHT, timeout=10)
    fake.before = lambda method: together.wait() and None if method == "Upsert" else None
    count = codec.VECTORS_PER_CALL * 8
    vectors = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    written = client.upsert("c", ids=np.arange(count), vectors=vectors)
    assert written.upserted == count == client.count("c")
    assert fake.calls["Upsert"] == 8
    assert fake.in_flight_max == codec.VECTOR_CALLS_IN_FLIGHT
    token = token_pb2.ConsistencyToken.FromString(written.consistency_token)
    assert max(shard.seqno for shard in token.shards) == count
    assert len({shard.shard for shard in token.shards}) == len(token.shards)
    sample = client.get("c", ids=[0, count - 1], with_vector=True)
    assert np.array_equal(np.stack([one.vector for one in sample]), vectors[[0, -1]])


def test_many_ids_are_got_and_deleted_in_order(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    count = 12_000
    client.upsert("c", ids=range(count), vectors=np.zeros((count, 1)))
    backwards = [str(n) for n in reversed(range(count))]
    assert [one.id for one in client.get("c", ids=backwards)] == backwards
    assert client.delete("c", ids=range(count)).deleted == count
    assert (fake.calls["Get"], fake.calls["Delete"]) == (24, 2)


def test_many_queries_come_back_in_order(client: Any) -> None:
    client.create_collection("c", dim=1)
    count = 2_500
    vectors = np.arange(count)[:, None]
    client.upsert("c", ids=range(count), vectors=vectors)
    found = client.search("c", vectors=vectors, k=1)
    assert found.ids[:, 0].tolist() == [str(n) for n in range(count)]


def test_a_row_at_fault_in_a_late_call_has_its_own_position(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=2, metric="cosine")
    count = codec.VECTORS_PER_CALL + 10
    vectors = np.ones((count, 2))
    vectors[-3] = 0
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        client.upsert("c", ids=range(count), vectors=vectors)
    assert (caught.value.reason, caught.value.field) == ("ZERO_VECTOR", f"vectors[{count - 3}]")
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        client.search("c", vectors=np.ones((1, 3)))
    assert (caught.value.reason, caught.value.field) == ("WRONG_DIMENSION", "vectors[0]")
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        client.create_collection("d", dim=5_000)
    assert caught.value.field == "dim"


def test_what_is_wrong_from_the_start_is_not_sent(client: Any, fake: FakeCluster) -> None:
    with pytest.raises(vectorfleet.InvalidRequest):
        client.upsert("c", ids=["a"], vectors=[[float("nan")]])
    with pytest.raises(vectorfleet.InvalidRequest):
        client.upsert("c", ids=["a"], vectors=[[1]], payloads=[{"x": {1, 2}}])
    with pytest.raises(vectorfleet.InvalidRequest):
        client.search("c", vectors=[[1]], timeout=0)
    assert not fake.requests


def test_what_is_unavailable_is_tried_again(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    fake.fail("Count", AWAY, errors.Unavailable("stale", reason="STALE_SHARD_MAP"))
    assert client.count("c") == 0
    assert fake.calls["Count"] == 3
    fake.fail("Upsert", AWAY, AWAY)
    count = codec.VECTORS_PER_CALL * 3
    assert client.upsert("c", ids=range(count), vectors=np.zeros((count, 1))).upserted == count
    assert fake.calls["Upsert"] == 5


def test_trying_again_has_an_end(client: Any, fake: FakeCluster) -> None:
    fake.fail("Count", *[AWAY] * 20)
    with pytest.raises(vectorfleet.Unavailable) as caught:
        client.count("c")
    assert (caught.value.reason, caught.value.message) == ("SHARD_UNAVAILABLE", "a shard is away")
    assert fake.calls["Count"] == 5


def test_trying_again_ends_with_the_deadline(client: Any, fake: FakeCluster) -> None:
    fake.fail("Count", *[AWAY] * 20)
    # Five attempts have at least 0.75 s of pauses between them. The last one may be cut by the deadline itself.
    with pytest.raises((vectorfleet.Unavailable, vectorfleet.DeadlineExceeded)):
        client.count("c", timeout=0.2)
    assert fake.calls["Count"] < 5


@pytest.mark.parametrize(
    "error", [errors.ResourceExhausted("full"), errors.InternalError("broken"), errors.DataLoss("x")]
)
def test_nothing_else_is_tried_again(client: Any, fake: FakeCluster, error: errors.VectorfleetError) -> None:
    fake.fail("Count", error, error)
    with pytest.raises(type(error)) as caught:
        client.count("c")
    assert caught.value.reason == error.reason
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert fake.calls["Count"] == 1


def test_a_creation_is_not_made_twice(client: Any, fake: FakeCluster) -> None:
    fake.fail("CreateCollection", errors.Unavailable("etcd", reason="COORDINATOR_UNAVAILABLE"))
    with pytest.raises(vectorfleet.Unavailable):
        client.create_collection("c", dim=1)
    assert fake.calls["CreateCollection"] == 1
    fake.fail("CreateCollection", errors.Unavailable("none yet", reason="NO_NODES"))
    assert client.create_collection("c", dim=1).dim == 1
    assert fake.calls["CreateCollection"] == 3
    fake.fail("DeleteCollection", AWAY)
    with pytest.raises(vectorfleet.Unavailable):
        client.delete_collection("c")
    assert fake.calls["DeleteCollection"] == 1


def test_the_first_failure_of_many_calls_ends_them_all(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    fake.fail("Upsert", errors.ResourceExhausted("full"))
    count = codec.VECTORS_PER_CALL * 20
    with pytest.raises(vectorfleet.ResourceExhausted):
        client.upsert("c", ids=range(count), vectors=np.zeros((count, 1)))
    assert fake.calls["Upsert"] <= 2 * codec.VECTOR_CALLS_IN_FLIGHT


def test_every_call_has_a_deadline(client: Any, fake: FakeCluster) -> None:
    release = threading.Event()
    fake.before = lambda method: release.wait(20) and None
    try:
        for attempt in (
            lambda: client.count("c", timeout=0.2),
            lambda: client.search("c", vectors=[[1]], timeout=0.2),
            lambda: client.upsert("c", ids=range(2), vectors=[[1], [2]], timeout=0.2),
            lambda: list(client.scroll("c", timeout=0.2)),
            lambda: client.create_collection("c", dim=1, timeout=0.2),
        ):
            start_s = time.monotonic()
            with pytest.raises(vectorfleet.DeadlineExceeded) as caught:
                attempt()
            assert caught.value.reason == "DEADLINE_EXCEEDED"
            assert time.monotonic() - start_s < 2.0
    finally:
        release.set()


def test_wait_indexed(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    client.upsert("c", ids=["a"], vectors=[[1]])
    fake.shelves["c"].polls_until_settled = 3
    fake.fail("GetCollection", *[AWAY] * 6)
    assert client.wait_indexed("c", timeout=20).progress.settled
    fake.shelves["c"].polls_until_settled = 10_000
    start_s = time.monotonic()
    with pytest.raises(vectorfleet.DeadlineExceeded, match="0 of 1 points"):
        client.wait_indexed("c", timeout=0.3)
    assert time.monotonic() - start_s < 2.0
    with pytest.raises(vectorfleet.NotFound):
        client.wait_indexed("nowhere")


def test_gaps_are_shown(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    fake.missing = [types_pb2.MissingShard(shard=2, reason="SHARD_UNAVAILABLE", message="node-1 is away")]
    coverage = client.search("c", vectors=[1]).coverage
    assert (coverage.complete, coverage.shards_answered, coverage.missing[0].shard) == (False, 3, 2)


def test_the_cluster_is_described(client: Any) -> None:
    client.create_collection("c", dim=1)
    info = client.cluster()
    assert [node.id for node in info.nodes] == ["node-0", "node-1"]
    assert (info.epoch, info.controller, info.coordinator_connected) == (7, "router-0", True)
    assert info.shards[0].hash_last == 2**64 - 1
    assert info.shards[0].replicas[0].status == "serving"


def test_who_calls_is_said(client: Any, fake: FakeCluster) -> None:
    client.cluster()
    assert fake.metadata[0]["user-agent"].startswith(f"vectorfleet-python/{vectorfleet.__version__} ")


def test_a_server_that_is_not_there() -> None:
    with vectorfleet.Client("127.0.0.1:9", timeout=5) as client:
        with pytest.raises(vectorfleet.Unavailable) as caught:
            client.count("c", timeout=0.5)
        assert caught.value.reason == "UNREACHABLE"
        assert caught.value.message.startswith("127.0.0.1:9 cannot be reached")


def test_large_messages_pass(client: Any) -> None:
    client.create_collection("c", dim=4096)
    vectors = np.ones((900, 4096), np.float32)
    client.upsert("c", ids=range(900), vectors=vectors)
    found = client.search("c", vectors=vectors[:1], k=900, with_vector=True)
    assert len(found.hits[0]) == 900
    assert found.hits[0][899].vector.shape == (4096,)


def test_the_blocking_client_is_shared_by_threads(fake: FakeCluster) -> None:
    with vectorfleet.Client(fake.address) as client, ThreadPoolExecutor(8) as pool:
        client.create_collection("c", dim=1)
        list(pool.map(lambda n: client.upsert("c", ids=[n], vectors=[[n]]), range(200)))
        answers = pool.map(lambda n: client.search("c", vectors=[n], k=1).ids[0, 0], range(200))
        assert list(answers) == [str(n) for n in range(200)]


async def test_the_asyncio_client_is_shared_by_tasks(fake: FakeCluster) -> None:
    async with vectorfleet.AsyncClient(fake.address) as client:
        await client.create_collection("c", dim=1)
        await asyncio.gather(*(client.upsert("c", ids=[n], vectors=[[n]]) for n in range(100)))
        found = await asyncio.gather(*(client.search("c", vectors=[n], k=1) for n in range(100)))
        assert [one.ids[0, 0] for one in found] == [str(n) for n in range(100)]
        assert [one.id async for one in client.scroll("c", page_size=7)] == sorted(str(n) for n in range(100))


async def test_a_cancelled_upsert_leaves_no_task(fake: FakeCluster) -> None:
    release = threading.Event()
    try:
        async with vectorfleet.AsyncClient(fake.address) as client:
            await client.create_collection("c", dim=1)
            arrived = threading.Semaphore(0)

            def hold(method: str) -> None:
                arrived.release()
                release.wait(20)

            fake.before = hold
            count = codec.VECTORS_PER_CALL * 4
            before = asyncio.all_tasks()
            task = asyncio.create_task(client.upsert("c", ids=range(count), vectors=np.zeros((count, 1))))
            assert await asyncio.to_thread(arrived.acquire, timeout=10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == before
    finally:
        release.set()


def test_an_asyncio_client_may_be_made_outside_of_a_loop(fake: FakeCluster) -> None:
    client = vectorfleet.AsyncClient(fake.address)

    async def ask() -> list[Any]:
        async with client:
            return await client.list_collections()

    assert asyncio.run(ask()) == []


def test_closing_twice_and_using_it_afterwards(fake: FakeCluster) -> None:
    client = vectorfleet.Client(fake.address)
    client.close()
    client.close()
    many = codec.VECTORS_PER_CALL * 3
    for attempt in (
        lambda: client.count("c"),
        lambda: client.upsert("c", ids=range(many), vectors=np.zeros((many, 1))),
        lambda: next(client.scroll("c")),
        lambda: client.create_backup("/backups"),
    ):
        with pytest.raises(vectorfleet.FailedPrecondition, match="closed") as caught:
            attempt()
        assert caught.value.reason == "CLIENT_CLOSED"

    async def ask() -> None:
        one = vectorfleet.AsyncClient(fake.address)
        await one.close()
        await one.close()
        with pytest.raises(vectorfleet.FailedPrecondition, match="closed"):
            await one.count("c")

    asyncio.run(ask())


MANY = codec.VECTORS_PER_CALL * 20
CALLS = {
    "Upsert": lambda client: client.upsert("c", ids=range(MANY), vectors=np.zeros((MANY, 1))),
    "Search": lambda client: client.search("c", vectors=np.zeros((limits.QUERIES_MAX * 20, 1)), k=1),
    "Count": lambda client: client.count("c"),
}


class Held:
    """Lets one call of a method be answered, and holds the others until `release`."""

    def __init__(self, fake: FakeCluster, method: str) -> None:
        self._method = method
        self._free = threading.Semaphore(0 if method == "Count" else 1)
        self._released = threading.Event()
        self.arrived = threading.Semaphore(0)
        fake.before = self._before

    def release(self) -> None:
        self._released.set()

    def _before(self, method: str) -> None:
        if method == self._method and not self._free.acquire(blocking=False):
            self.arrived.release()
            self._released.wait(20)


@pytest.mark.parametrize("method", CALLS)
def test_closing_during_a_call_fails_it(fake: FakeCluster, method: str) -> None:
    held = Held(fake, method)
    client = vectorfleet.Client(fake.address)
    client.create_collection("c", dim=1)
    try:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(CALLS[method], client)
            assert held.arrived.acquire(timeout=10)
            client.close()
            with pytest.raises(vectorfleet.FailedPrecondition) as caught:
                call.result(10)
        assert caught.value.reason == "CLIENT_CLOSED"
    finally:
        held.release()


@pytest.mark.parametrize("method", CALLS)
async def test_closing_the_asyncio_client_during_a_call_fails_it(fake: FakeCluster, method: str) -> None:
    held = Held(fake, method)
    client = vectorfleet.AsyncClient(fake.address)
    await client.create_collection("c", dim=1)
    try:
        call = asyncio.create_task(CALLS[method](client))
        assert await asyncio.to_thread(held.arrived.acquire, timeout=10)
        await client.close()
        with pytest.raises(vectorfleet.FailedPrecondition) as caught:
            await call
        assert caught.value.reason == "CLIENT_CLOSED"
    finally:
        held.release()


async def test_no_answer_is_missing_where_a_worker_was_cancelled(fake: FakeCluster) -> None:
    held = Held(fake, "Search")
    async with vectorfleet.AsyncClient(fake.address) as client:
        await client.create_collection("c", dim=1)
        before = asyncio.all_tasks()
        try:
            call = asyncio.create_task(CALLS["Search"](client))
            assert await asyncio.to_thread(held.arrived.acquire, timeout=10)
            for task in asyncio.all_tasks() - before - {call}:
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            held.release()


def test_payloads_arrive_as_they_were_given(client: Any, fake: FakeCluster) -> None:
    client.create_collection("c", dim=1)
    payload = {"text": "日本 \u2028 \x00", "n": 2**60, "f": 0.1, "deep": [{"a": [None, True]}]}
    client.upsert("c", ids=["a"], vectors=[[1]], payloads=[payload])
    assert client.get("c", ids=["a"])[0].payload == payload
    assert json.loads(fake.shelves["c"].points["a"].payload) == payload
