"""What a search costs the router's event loop: it is asked in the step in which it comes, merged in that of its last answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pytest

from router import fanout, server
from router.deadline import Deadline
from router.fanout import Fanout
from router.node_stream import NodeStream, Told
from router.nodes import Node, NodePool
from router.searches import Searches, Share
from router.validation import SearchOptions
from tests.unit.router.api import Api, loaded
from tests.unit.router.fake_node import fleet
from vectorfleet import errors
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.placement import hash_ranges
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2 as pb

NODES = ("n0", "n1")
PATIENCE_S = 600.0
QUERY = np.zeros((1, 2), np.float32)


class Stream:
    """Keeps what it is asked, to be answered by hand."""

    def __init__(self) -> None:
        self.asked: list[tuple[pb.SearchRequest, Told]] = []
        self.given_up = 0

    def ask(self, message: pb.SearchStreamRequest, timeout_s: float, told: Told) -> Callable[[], None]:
        self.asked.append((message.request, told))
        return self._give_up

    def _give_up(self) -> None:
        self.given_up += 1

    def answer(self) -> None:
        request, told = self.asked.pop(0)
        response = pb.SearchResponse()
        for target in request.targets:
            result = response.results.add(shard=target.shard, ids=[f"of shard {target.shard}"] * request.query_count)
            result.counts = np.ones(request.query_count, "<u4").tobytes()
            result.scores = np.full(request.query_count, target.shard, "<f4").tobytes()
        told(response)

    def fail(self, error: errors.VectorfleetError) -> None:
        self.asked.pop(0)[1](error)


class Map:
    """A coordinator that has seen one state."""

    def __init__(self) -> None:
        shards = tuple(
            ShardAssignment(number, *bounds, 1, NODES[number], (NODES[number],), (NODES[number],))
            for number, bounds in enumerate(hash_ranges(len(NODES)))
        )
        self.record = CollectionRecord("c", "u", 2, 1, shards)
        nodes = {name: NodeInfo(name, f"127.0.0.1:{number + 1}") for number, name in enumerate(NODES)}
        self.state = ClusterState(1, MappingProxyType(nodes), MappingProxyType({"c": self.record}))


class Bench:
    """A router's searches over two nodes that are answered for by hand."""

    def __init__(self, *, in_flight_max: int = 2) -> None:
        self._map = Map()
        self.pool = NodePool()
        self.streams = [Stream() for _ in NODES]
        for name, stream in zip(NODES, self.streams, strict=True):
            node = self.pool.find(name, self._map.state)
            assert node is not None
            node.stream = cast(NodeStream, stream)
        self.fanout = Fanout(cast(Coordinator, self._map), self.pool)
        self.searches = Searches(self.fanout, in_flight_max=in_flight_max)

    def outstanding(self) -> list[int]:
        """Queries that each node owes an answer to, as the router counts them."""
        return [node.outstanding for name in NODES if (node := self.pool.known(name)) is not None]

    def search(self, seconds: float = PATIENCE_S) -> asyncio.Task[Share]:
        deadline = Deadline.after(seconds)
        return asyncio.create_task(self.searches.search(self._map.record, QUERY, SearchOptions(k=3), {}, deadline))


@pytest.fixture(autouse=True)
def lanes_are_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch keeps its place however long this machine stands still."""
    monkeypatch.setattr("vectorfleet.batching.PATIENCE_S", PATIENCE_S)


@asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    one = Bench(**settings)
    try:
        yield one
    finally:
        await one.searches.close()
        await one.fanout.close()
        await one.pool.close()


async def test_it_leaves_in_the_step_in_which_it_comes_and_is_merged_in_that_of_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as router:
        search = router.search()
        loop = asyncio.get_running_loop()
        steps: list[Any] = []
        call_soon = loop.call_soon

        def counted(callback: Any, *args: Any, **rest: Any) -> asyncio.Handle:
            steps.append(callback)
            return call_soon(callback, *args, **rest)

        monkeypatch.setattr(loop, "call_soon", counted)
        await asyncio.sleep(0)
        assert [len(stream.asked) for stream in router.streams] == [1, 1], "one turn, and both nodes are asked"
        for stream in router.streams:
            stream.answer()
        await asyncio.sleep(0)
        assert search.done(), "one turn after the last answer the caller has it"
        monkeypatch.undo()
        ours = [step for step in steps if "sleep" not in repr(step)]
        assert len(ours) <= 4, f"the test's own two, the caller goes on, the lane is free: {ours}"
        assert (await search).winners.ids == ["of shard 0", "of shard 1"]


async def test_a_search_has_no_task_of_its_own_in_the_router(rng: np.random.Generator) -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **rest: Any) -> asyncio.Task[Any]:
        code = getattr(coroutine, "cr_code", None)  # gRPC's own are compiled, and have none
        made.append("" if code is None else f"{code.co_filename}: {code.co_qualname}")
        return asyncio.Task(coroutine, loop=loop, **rest)

    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        await api.search(vectors[:1])  # opens the streams
        asyncio.get_running_loop().set_task_factory(factory)
        for row in range(5):
            assert not (await api.search(vectors[row : row + 1])).coverage.missing
        asyncio.get_running_loop().set_task_factory(None)
    assert made, "gRPC makes some"
    assert not [name for name in made if name.startswith(str(Path(cast(str, server.__file__)).parent))]


async def test_the_time_of_one_caller_is_up_and_the_others_wait_on() -> None:
    async with bench(in_flight_max=1) as router:
        first = router.search()
        await asyncio.sleep(0)
        hasty, patient = router.search(60.0), router.search()  # they travel together, behind the first
        await asyncio.sleep(0)
        for stream in router.streams:
            stream.answer()
        await first
        router.streams[0].answer()
        router.searches._ring(time.monotonic() + 100.0)
        share = await hasty
        assert share.coverage.shards_answered == 1
        assert share.coverage.missing[0].reason == "DEADLINE_EXCEEDED"
        assert not patient.done()
        router.streams[1].answer()
        assert not (await patient).coverage.missing


async def test_who_waits_to_travel_beyond_his_deadline_is_told_so() -> None:
    async with bench(in_flight_max=1) as router:
        first = router.search()
        await asyncio.sleep(0)
        hasty = router.search(60.0)
        await asyncio.sleep(0)
        router.searches._ring(time.monotonic() + 100.0)
        with pytest.raises(errors.DeadlineExceeded, match="behind other searches"):
            await hasty
        assert not first.done()
        first.cancel()


async def test_nodes_hear_when_the_last_caller_has_gone() -> None:
    async with bench(in_flight_max=1) as router:
        ahead = router.search()
        await asyncio.sleep(0)
        both = [router.search(), router.search()]
        await asyncio.sleep(0)
        for stream in router.streams:
            stream.answer()
        await ahead
        both[0].cancel()
        await asyncio.sleep(0)
        assert [stream.given_up for stream in router.streams] == [0, 0]
        both[1].cancel()
        await asyncio.wait(both)
        assert [stream.given_up for stream in router.streams] == [1, 1]
        again = router.search()
        await asyncio.sleep(0)
        assert [len(stream.asked) for stream in router.streams] == [2, 2], "and the lane is free for the next"
        again.cancel()


async def test_a_defect_in_the_merge_is_told_to_all_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as router:
        searches = [router.search(), router.search()]
        await asyncio.sleep(0)

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr("router.searches.merge", broken)
        for stream in router.streams:
            while stream.asked:
                stream.answer()
        for search in searches:
            with pytest.raises(RuntimeError, match="a defect"):
                await search


async def test_a_node_that_fails_costs_its_part() -> None:
    async with bench() as router:
        search = router.search()
        await asyncio.sleep(0)
        router.streams[0].fail(errors.ResourceExhausted("busy"))
        router.streams[1].answer()
        share = await search
        assert [missing.reason for missing in share.coverage.missing] == ["OVERLOADED"]
        assert share.winners.ids == ["of shard 1"]


async def test_a_defect_in_reading_an_answer_costs_that_nodes_part_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as router:
        search = router.search()
        await asyncio.sleep(0)
        read = fanout._read

        def broken(result: pb.ShardResult, question: fanout.Question) -> Any:
            if result.shard == 0:
                raise RuntimeError("a defect")
            return read(result, question)

        monkeypatch.setattr(fanout, "_read", broken)
        for stream in router.streams:
            stream.answer()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert search.done(), "nobody waits for a node that has spoken"
        share = await search
        assert [(missing.shard, missing.reason) for missing in share.coverage.missing] == [(0, "INTERNAL")]
        assert share.winners.ids == ["of shard 1"]
        assert router.outstanding() == [0, 0]


@pytest.mark.parametrize("small", [True, False])
async def test_a_defect_in_asking_a_node_costs_its_part_at_once(monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    async with bench() as router:
        if small:
            monkeypatch.setattr(router.streams[0], "ask", broken)
        else:
            monkeypatch.setattr("router.fanout.STREAMED_BYTES_MAX", 0)
            monkeypatch.setattr(Node, "call", broken)
        search = router.search()
        await asyncio.sleep(0)
        if small:
            router.streams[1].answer()
        async with asyncio.timeout(PATIENCE_S / 10):
            share = await search
        found = {missing.shard: missing.reason for missing in share.coverage.missing}
        assert found == ({0: "INTERNAL"} if small else {0: "INTERNAL", 1: "INTERNAL"})
        assert router.outstanding() == [0, 0]


async def test_a_defect_in_sending_a_batch_is_told_and_its_lane_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a defect")

    async with bench(in_flight_max=1) as router:
        with monkeypatch.context() as patch:
            patch.setattr("router.searches.Question", broken)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="a defect"):
                    await router.search()
        assert router.searches.queued == 0
        assert not router.searches._punctuality
        search = router.search()
        await asyncio.sleep(0)
        for stream in router.streams:
            stream.answer()
        assert not (await search).coverage.missing


async def test_who_is_asked_for_alone_is_told_when_his_time_is_up_behind_the_others() -> None:
    async with bench(in_flight_max=1) as router:
        ahead = router.search()
        await asyncio.sleep(0)
        first, hasty, last = router.search(), router.search(60.0), router.search()  # they travel together
        await asyncio.sleep(0)
        for stream in router.streams:
            stream.answer()
        await ahead
        for stream in router.streams:  # and their hits do not fit a message
            stream.fail(errors.ResourceExhausted("too much", reason="RESPONSE_TOO_LARGE"))
        await asyncio.sleep(0)
        assert [stream.asked[0][0].query_count for stream in router.streams] == [1, 1]
        router.searches._ring(time.monotonic() + 100.0)
        with pytest.raises(errors.DeadlineExceeded, match="behind other searches"):
            await hasty
        for one in (first, last):
            assert not one.done()
            for stream in router.streams:
                stream.answer()
            assert not (await one).coverage.missing
            await asyncio.sleep(0)
        assert [stream.asked for stream in router.streams] == [[], []], "nobody is asked for who has gone"


async def test_closing_leaves_no_task_of_a_large_question_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.fanout.STREAMED_BYTES_MAX", 0)
    before = asyncio.all_tasks()
    async with bench() as router:
        asked: list[asyncio.Task[Any] | None] = []

        async def never(node: Node, call: Any) -> None:
            asked.append(asyncio.current_task())
            call.cancel()
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(Node, "call", never)
        search = router.search()
        while len(asked) < len(NODES):  # noqa: ASYNC110 (two tasks take their first step)
            await asyncio.sleep(0)
        await router.searches.close()
        await router.fanout.close()
        assert all(task is not None and task.done() for task in asked)
        await asyncio.wait([search])
        assert not asyncio.all_tasks() - before
