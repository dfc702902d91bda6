"""Searches that share a call: what each caller gets is what it would have got alone, whatever the others asked."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from vectorfleet import errors

DIM = 4


class Ask(Protocol):
    """Makes searches at the same time, of which the first two are answered last; returns outcomes in order."""

    def __call__(self, searches: list[dict[str, Any]]) -> list[Any]: ...


@pytest.fixture
def things(fake: FakeCluster) -> np.ndarray:
    vectors = np.random.default_rng(1).standard_normal((50, DIM)).astype(np.float32)
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("things", dim=DIM)
        client.upsert("things", ids=range(50), vectors=vectors, payloads=[{"row": row} for row in range(50)])
    return vectors


@pytest.fixture(params=["threads", "tasks"])
def ask(request: pytest.FixtureRequest, fake: FakeCluster) -> Ask:
    """Both clients by turns. The server holds two calls back until all other searches are queued behind them."""

    def held() -> threading.Event:
        queued = threading.Event()
        fake.before = lambda method: None if fake.calls["Search"] > 2 else (queued.wait(20), None)[1]
        return queued

    async def as_tasks(searches: list[dict[str, Any]]) -> list[Any]:
        queued = held()
        async with vectorfleet.AsyncClient(fake.address, timeout=20) as client:
            tasks = [asyncio.create_task(client.search("things", **one)) for one in searches]
            await asyncio.sleep(0)  # each has run until it waits
            queued.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    def as_threads(searches: list[dict[str, Any]]) -> list[Any]:
        queued = held()
        with vectorfleet.Client(fake.address, timeout=20) as client, ThreadPoolExecutor(len(searches)) as pool:
            futures = []
            for one in searches:
                before = waiting(client)
                futures.append(pool.submit(client.search, "things", **one))
                while waiting(client) == before and not futures[-1].done():
                    threading.Event().wait(0.001)
            queued.set()
            outcomes = [future.exception() or future.result() for future in futures]
            assert not client._sharing._lanes, "lanes without work are gone"
            return outcomes

    def waiting(client: vectorfleet.Client) -> int:
        lanes = list(client._sharing._lanes.values())
        return sum(len(lane.queue) + len(lane.under_way) for lane in lanes)

    if request.param == "tasks":
        return lambda searches: asyncio.run(as_tasks(searches))
    return as_threads


def test_searches_that_wait_together_travel_together(ask: Ask, fake: FakeCluster, things: np.ndarray) -> None:
    found = ask([{"vectors": vector, "k": 3, "with_payload": True, "with_vector": True} for vector in things[:20]])
    assert fake.calls["Search"] < 10
    assert max(len(one.queries) for one in fake.requests if hasattr(one, "queries")) > 1
    for row, one in enumerate(found):
        distances = np.linalg.norm(things - things[row], axis=1)
        nearest = np.argsort(distances)[:3]
        assert one.ids.tolist() == [[str(at) for at in nearest]]
        assert one.scores[0] == pytest.approx(distances[nearest], abs=1e-6)
        assert [hit.payload for hit in one.hits[0]] == [{"row": at} for at in nearest]
        assert np.array_equal(np.stack([hit.vector for hit in one.hits[0]]), things[nearest])
        assert one.coverage.complete


def test_only_searches_that_ask_alike_share_a_call(ask: Ask, fake: FakeCluster, things: np.ndarray) -> None:
    ways = [{"k": 2}, {"k": 3}, {"k": 2, "min_coverage": 0.5}, {"k": 2, "timeout": 19.0}, {"k": 2, "nprobe": 7}]
    found = ask([{"vectors": things[row], **ways[row % 5]} for row in range(40)])
    assert [one.ids.shape[1] for one in found] == [ways[row % 5]["k"] for row in range(40)]
    assert [one.ids[0, 0] for one in found] == [str(row) for row in range(40)]
    for request in fake.requests:
        if hasattr(request, "queries"):
            assert (
                len({np.argmin(((things - np.frombuffer(q.vector, "<f4")) ** 2).sum(1)) % 5 for q in request.queries})
                == 1
            )


def test_one_bad_vector_fails_nobody_else(ask: Ask, fake: FakeCluster, things: np.ndarray) -> None:
    short = {"vectors": [1.0, 2.0]}
    found = ask([{"vectors": things[row]} if row % 4 else short for row in range(24)])
    for row, one in enumerate(found):
        if row % 4:
            assert one.ids[0, 0] == str(row)
        else:
            assert (one.reason, one.field) == ("WRONG_DIMENSION", "vectors[0]")


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (errors.InvalidRequest("the length is zero", reason="ZERO_VECTOR", field="queries[3].vector"), True),
        (errors.ResourceExhausted("too large", reason="RESPONSE_TOO_LARGE"), True),
        (errors.ResourceExhausted("the queue is full"), False),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_a_shared_call_that_fails_is_made_again_one_by_one(
    ask: Ask, fake: FakeCluster, things: np.ndarray, failure: errors.VectorfleetError, again: bool
) -> None:
    shared = 0
    make = fake._answer

    def answer(method: str, request: Any, context: Any, make_response: Any) -> Any:
        nonlocal shared
        if method == "Search" and len(request.queries) > 1:
            shared += 1
            return make(method, request, context, fail)
        return make(method, request, context, make_response)

    def fail() -> Any:
        raise failure

    fake._answer = answer  # type: ignore[method-assign]
    found = ask([{"vectors": vector} for vector in things[:12]])
    assert shared
    for row, one in enumerate(found):
        if again or row == 0:
            assert one.ids[0, 0] == str(row)
        elif row > 1:  # the second thread leaves alone, too; the second task waits for those of its turn
            assert one.reason == failure.reason


async def test_a_call_that_nobody_waits_for_is_cancelled(fake: FakeCluster, things: np.ndarray) -> None:
    hold = threading.Event()
    fake.before = lambda method: (hold.wait(20), None)[1]
    async with vectorfleet.AsyncClient(fake.address, timeout=20) as client:
        tasks = [asyncio.create_task(client.search("things", vectors=vector)) for vector in things[:6]]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        lanes = client._stubs.sharing._lanes
        await asyncio.gather(*lanes._under_way, return_exceptions=True)  # they end without the server's answer
        assert not lanes._lanes
    hold.set()


async def test_closing_ends_what_waits(fake: FakeCluster, things: np.ndarray) -> None:
    hold = threading.Event()
    fake.before = lambda method: (hold.wait(20), None)[1]
    client = vectorfleet.AsyncClient(fake.address, timeout=20)
    tasks = [asyncio.create_task(client.search("things", vectors=vector)) for vector in things[:6]]
    await asyncio.sleep(0)
    await client.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(one, "reason", one) for one in outcomes] == ["CLIENT_CLOSED"] * 6
    hold.set()
