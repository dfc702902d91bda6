"""What a search costs in the client: tasks, timers, futures, function calls. Counted, not timed; a cluster's own work is apart.

A search alone may cost the event loop nothing beyond what gRPC's plain stub costs it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from vectorfleet import _codec as codec
from vectorfleet.v1 import search_service_pb2, search_service_pb2_grpc

DIM = 4
VECTOR = np.ones(DIM, np.float32)
HOUSE = str(Path(vectorfleet.__file__).parent)
CALLS_OF_OURS_MAX = 50
"""Functions of this package that a search alone calls; 39 with the asyncio client, 33 with the blocking one. Each costs about
a microsecond where a program asks now and then, and finds its caches cold."""


@pytest.fixture
def things(fake: FakeCluster) -> np.ndarray:
    vectors = np.random.default_rng(1).standard_normal((50, DIM)).astype(np.float32)
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("things", dim=DIM)
        client.upsert("things", ids=range(50), vectors=vectors)
    return vectors


async def spent(act: Callable[[], Awaitable[object]]) -> Counter[str]:
    """What `act` asks of the running loop."""
    loop, counted = asyncio.get_running_loop(), Counter[str]()

    def counting(name: str) -> Callable[..., Any]:
        method = getattr(loop, name)

        def count(*args: Any, **options: Any) -> Any:
            counted[name] += 1
            return method(*args, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_task", "create_future", "call_at"):
            patch.setattr(loop, name, counting(name))
        await act()
    return counted


@contextmanager
def calls_of_ours(counted: Counter[str]) -> Iterator[None]:
    """Counts the functions of the package that this thread calls."""

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOUSE):
            counted[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


async def test_a_search_alone_costs_the_loop_what_the_plain_stub_costs_it(
    fake: FakeCluster, things: np.ndarray
) -> None:
    request = search_service_pb2.SearchRequest(
        collection="things", k=10, queries=[search_service_pb2.Query(vector=VECTOR.tobytes())], packed=True
    )
    async with vectorfleet.AsyncClient(fake.address) as client, grpc.aio.insecure_channel(fake.address) as channel:
        plain = search_service_pb2_grpc.SearchServiceStub(channel)

        async def through_the_stub() -> None:
            await plain.Search(request, timeout=10)

        async def through_the_client() -> None:
            await client.search("things", vectors=VECTOR)

        await through_the_stub()
        await through_the_client()
        assert (
            await spent(through_the_client) == await spent(through_the_stub) == {"create_task": 1, "create_future": 1}
        )


async def test_a_search_alone_calls_few_functions(fake: FakeCluster, things: np.ndarray) -> None:
    counted = Counter[str]()
    async with vectorfleet.AsyncClient(fake.address) as client:
        await client.search("things", vectors=VECTOR)
        with calls_of_ours(counted):
            (await client.search("things", vectors=VECTOR)).ids  # noqa: B018 (to be read costs, too)
    assert 0 < counted.total() <= CALLS_OF_OURS_MAX, counted.most_common()


def test_a_search_of_one_thread_calls_few_functions(fake: FakeCluster, things: np.ndarray) -> None:
    counted = Counter[str]()
    with vectorfleet.Client(fake.address) as client:
        client.search("things", vectors=VECTOR)
        with calls_of_ours(counted):
            client.search("things", vectors=VECTOR).ids  # noqa: B018 (to be read costs, too)
    assert 0 < counted.total() <= CALLS_OF_OURS_MAX, counted.most_common()


async def test_searches_of_one_turn_travel_together(fake: FakeCluster, things: np.ndarray) -> None:
    first_came, first_may_go = threading.Event(), threading.Event()

    def before(method: str) -> None:
        if not first_came.is_set():
            first_came.set()
            first_may_go.wait(20)

    fake.before = before
    async with vectorfleet.AsyncClient(fake.address, timeout=20) as client:

        async def ask(rows: range) -> None:
            # Each batch comes back to all of its callers in one turn, and they ask again in the next.
            found = await asyncio.gather(*(client.search("things", vectors=things[row], k=1) for row in rows))
            assert [one.ids[0, 0] for one in found] == [str(row) for row in rows]

        first = asyncio.create_task(ask(range(1)))
        await asyncio.to_thread(first_came.wait, 20)
        for _ in range(3):
            counted = await spent(lambda: ask(range(1, 8)))
            carry, of_grpc, wake_up = 1, 1, 1
            assert counted["create_task"] == 7 + carry + of_grpc
            assert counted["call_at"] <= wake_up
        first_may_go.set()
        await first
    assert [len(one.queries) for one in fake.requests if hasattr(one, "queries")] == [1, 7, 7, 7]


async def test_who_was_one_of_several_is_alone_again(fake: FakeCluster, things: np.ndarray) -> None:
    came, may_go = ([threading.Event(), threading.Event()] for _ in range(2))

    def before(method: str) -> None:
        call = sum(event.is_set() for event in came)  # one comes when the one before is here
        if call < len(came):
            came[call].set()
            may_go[call].wait(20)

    fake.before = before
    async with vectorfleet.AsyncClient(fake.address, timeout=20) as client:

        async def ask() -> None:
            await client.search("things", vectors=VECTOR)

        async def ask_twice() -> Counter[str]:
            await ask()
            return await spent(ask)  # without a pause

        first = asyncio.create_task(ask())
        await asyncio.to_thread(came[0].wait, 20)
        second = asyncio.create_task(ask_twice())
        await asyncio.to_thread(came[1].wait, 20)
        may_go[0].set()
        await first
        may_go[1].set()
        assert (await second)["create_task"] == 1


async def test_searches_that_queue_set_one_timer(fake: FakeCluster, things: np.ndarray) -> None:
    may_go = threading.Event()
    fake.before = lambda method: (may_go.wait(20), None)[1]
    async with vectorfleet.AsyncClient(fake.address, timeout=20) as client:
        tasks: list[asyncio.Task[Any]] = []

        async def ask() -> None:
            for _ in range(10):
                tasks.append(asyncio.create_task(client.search("things", vectors=VECTOR)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        counted = await spent(ask)
        assert counted["call_at"] <= 1
        may_go.set()
        await asyncio.gather(*tasks)


def plan_of(**changes: Any) -> codec.Search:
    asked: dict[str, Any] = {
        "k": 10, "nprobe": 0, "oversample": 0, "exact": False, "with_payload": False, "with_vector": False,
        "min_coverage": 0.0, "consistency_token": b"",
    }  # fmt: skip
    return codec.search("things", VECTOR, None, **asked | changes)


def test_how_a_search_asks_is_worked_out_once() -> None:
    assert plan_of(nprobe=7).manner is plan_of(nprobe=7).manner
    assert plan_of(nprobe=7).manner is not plan_of(nprobe=8).manner


def test_what_may_change_under_the_same_name_is_looked_at_each_time() -> None:
    class Growing:
        size = 3

        def __index__(self) -> int:
            return self.size

    growing, wanted = Growing(), {"lang": "en"}
    few, english = plan_of(k=growing), plan_of(filter=wanted)
    growing.size, wanted["lang"] = 4, "de"
    assert (few.k, plan_of(k=growing).k) == (3, 4)
    assert english.lane != plan_of(filter=wanted).lane
    assert plan_of(filter={"lang": "de"}).lane == plan_of(filter=wanted).lane
