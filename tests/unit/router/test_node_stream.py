"""Searches that share one stream to a node: each gets its own answer, and learns of it when the stream breaks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest

from router.node_stream import NodeStream, Outcome
from shard_server import search_stream
from tests.unit.shard_server.fake_replica import until
from vectorfleet import errors, serving
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc

PATIENCE_S = 20.0


class Node(pb_grpc.ShardServiceServicer):
    """Answers the search for k hits with shard k, once the gate of that k is open."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Event] = {}
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.streams = 0
        self.broken = False
        self.stopping = asyncio.Event()

    async def SearchStream(  # noqa: N802
        self, requests: AsyncIterator[pb.SearchStreamRequest], context: Any
    ) -> AsyncIterator[pb.SearchStreamResponse]:
        self.streams += 1
        if self.broken:
            raise RuntimeError("a defect, or gRPC's own word for a stream that broke under a message")
        async for response in search_stream.answer_stream(requests, self._search, self.stopping):
            yield response

    async def _search(self, request: pb.SearchRequest, timeout_s: float, response: pb.SearchResponse) -> None:
        self.asked.append(request.k)
        try:
            if request.k in self.gates:
                await self.gates[request.k].wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.k)
            raise
        if request.k == 7:
            raise errors.ResourceExhausted("seven is too many", reason="RESPONSE_TOO_LARGE")
        response.results.add(shard=request.k)


@asynccontextmanager
async def node() -> AsyncIterator[tuple[Node, NodeStream, grpc.aio.Server]]:
    """A node behind a real port, and the way to it."""
    served = Node()
    server = serving.new_server()
    pb_grpc.add_ShardServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield served, NodeStream(pb_grpc.ShardServiceStub(channel)), server
    finally:
        await server.stop(0)


async def ask(stream: NodeStream, k: int) -> int:
    message = pb.SearchStreamRequest()
    message.request.k = k
    told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    give_up = stream.ask(message, PATIENCE_S, told.set_result)
    try:
        async with asyncio.timeout(PATIENCE_S):
            outcome = await told
    finally:
        give_up()
    if isinstance(outcome, errors.VectorfleetError):
        raise outcome
    return outcome.results[0].shard


async def test_each_search_gets_its_own_answer_in_whatever_order_they_are_done() -> None:
    async with node() as (served, stream, _):
        served.gates[1] = asyncio.Event()
        slow = asyncio.create_task(ask(stream, 1))
        assert await asyncio.gather(*(ask(stream, k) for k in (2, 3, 4))) == [2, 3, 4]
        assert not slow.done()
        served.gates[1].set()
        assert await slow == 1
        assert served.streams == 1


async def test_an_error_is_that_of_its_search_alone() -> None:
    async with node() as (served, stream, _):
        outcomes = await asyncio.gather(ask(stream, 7), ask(stream, 2), return_exceptions=True)
        assert isinstance(outcomes[0], errors.ResourceExhausted)
        assert outcomes[0].reason == "RESPONSE_TOO_LARGE"
        assert outcomes[1] == 2
        assert served.streams == 1


async def test_a_search_whose_caller_has_gone_ends_on_the_node_and_the_stream_goes_on() -> None:
    async with node() as (served, stream, _):
        served.gates[1] = asyncio.Event()
        left = asyncio.create_task(ask(stream, 1))
        await until(lambda: served.asked == [1], "the node was asked")
        left.cancel()
        await until(lambda: served.cancelled == [1], "the search ended")
        assert await ask(stream, 2) == 2
        assert served.streams == 1


async def test_what_waits_fails_when_the_stream_ends_and_the_next_search_opens_another() -> None:
    async with node() as (served, stream, _):
        served.gates[1] = asyncio.Event()
        waiting = asyncio.create_task(ask(stream, 1))
        await until(lambda: served.asked == [1], "the node was asked")
        stream.end()
        with pytest.raises(errors.Unavailable) as caught:
            await waiting
        assert caught.value.reason == "UNREACHABLE"
        assert await ask(stream, 2) == 2
        assert served.streams == 2


async def test_a_stream_that_ends_as_internal_has_broken_and_is_no_answer_of_the_node() -> None:
    async with node() as (served, stream, _):
        served.broken = True
        with pytest.raises(errors.Unavailable) as caught:
            await ask(stream, 1)
        assert caught.value.reason == "UNREACHABLE"
        served.broken = False
        assert await ask(stream, 2) == 2


async def test_a_node_that_stops_answers_what_it_was_asked_and_ends_the_stream() -> None:
    async with node() as (served, stream, server):
        served.gates[1] = asyncio.Event()
        waiting = asyncio.create_task(ask(stream, 1))
        await until(lambda: served.asked == [1], "the node was asked")
        served.stopping.set()
        stopping = asyncio.create_task(server.stop(PATIENCE_S))
        served.gates[1].set()
        assert await waiting == 1
        async with asyncio.timeout(PATIENCE_S / 2):
            await stopping
        with pytest.raises(errors.Unavailable):
            await ask(stream, 2)


async def test_a_retired_stream_answers_what_waits_and_then_ends() -> None:
    async with node() as (served, stream, server):
        served.gates[1] = asyncio.Event()
        waiting = asyncio.create_task(ask(stream, 1))
        await until(lambda: served.asked == [1], "the node was asked")
        stream.retire()
        stopping = asyncio.create_task(server.stop(PATIENCE_S))
        served.gates[1].set()
        assert await waiting == 1
        async with asyncio.timeout(PATIENCE_S / 2):
            await stopping


class SlowCall:
    """A stream whose other side takes one message each time that it is told to."""

    def __init__(self) -> None:
        self.written: list[pb.SearchStreamRequest] = []
        self.ended = asyncio.Event()
        self.opened_by = OPENER.get()
        self.read_by = ""

    async def write(self, message: pb.SearchStreamRequest) -> None:
        self.written.append(message)
        self._turn = asyncio.get_running_loop().create_future()
        await self._turn

    def take(self) -> None:
        self._turn.set_result(None)

    async def read(self) -> object:
        self.read_by = OPENER.get()
        await self.ended.wait()
        return grpc.aio.EOF

    def cancel(self) -> None:
        self.ended.set()


OPENER: contextvars.ContextVar[str] = contextvars.ContextVar("OPENER", default="nobody")


class SlowStub:
    def __init__(self) -> None:
        self.calls: list[SlowCall] = []

    def SearchStream(self) -> SlowCall:  # noqa: N802
        self.calls.append(SlowCall())
        return self.calls[-1]


async def test_what_was_given_up_before_it_was_sent_is_not_sent() -> None:
    stub = SlowStub()
    stream = NodeStream(cast("pb_grpc.ShardServiceAsyncStub", stub))
    heard: list[Outcome] = []

    def search(k: int) -> Callable[[], None]:
        message = pb.SearchStreamRequest()
        message.request.k = k
        return stream.ask(message, PATIENCE_S, heard.append)

    sent = search(1)
    (call,) = stub.calls
    for give_up in [search(k) for k in range(2, 1_000)]:
        give_up()
        give_up()
    search(1_000)
    sent()
    for _ in range(2):
        call.take()
        await asyncio.sleep(0)
    assert [(one.request_id, one.request.k) for one in call.written] == [(1, 1), (1_000, 1_000), (1, 0)]
    call.take()
    stream.end()
    await until(lambda: len(heard) == 1, "who waits is told that the stream ended")


async def test_a_stream_is_not_part_of_the_search_that_opened_it() -> None:
    stub = SlowStub()
    stream = NodeStream(cast("pb_grpc.ShardServiceAsyncStub", stub))
    OPENER.set("the first search")
    stream.ask(pb.SearchStreamRequest(), PATIENCE_S, lambda outcome: None)
    await asyncio.sleep(0)
    (call,) = stub.calls
    assert (call.opened_by, call.read_by) == ("nobody", "nobody")
    call.take()
    stream.end()
    await asyncio.sleep(0)


async def test_a_node_that_lets_go_of_the_stream_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(self: SlowCall) -> object:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "the other side let go of it")

    monkeypatch.setattr(SlowCall, "read", read)
    stream = NodeStream(cast("pb_grpc.ShardServiceAsyncStub", SlowStub()))
    with pytest.raises(errors.Unavailable) as caught:
        await ask(stream, 1)
    assert caught.value.reason == "UNREACHABLE"
