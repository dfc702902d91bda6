"""A router whose event loop is behind turns calls away before it receives them, and takes them again when it has caught up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router import search_service
from router import shedding as shedding_module
from router.shedding import BURST_S, CROWD, DELAY_MAX_S, SHARE_MAX, LoopDelay, Shedding
from vectorfleet import errors, serving

METHOD = f"/{search_service.NAME}/Search"
TIMEOUT_S = 20.0


def late(delay: LoopDelay, now_s: float, calls: int) -> bool:
    """Lets calls come, and the loop be late; returns whether it is behind."""
    for _ in range(calls):
        delay.came()
    delay.observe(2 * DELAY_MAX_S, now_s)
    return delay.behind


def test_a_burst_passes_and_a_loop_that_stays_late_before_a_crowd_is_behind() -> None:
    delay = LoopDelay()
    assert not late(delay, 0.0, CROWD)
    assert late(delay, BURST_S, 0)
    delay.observe(DELAY_MAX_S, 2 * BURST_S)
    assert not delay.behind
    assert not late(delay, 3 * BURST_S, CROWD), "the lateness of before does not count any more"


def test_one_long_stop_is_no_overload() -> None:
    delay = LoopDelay()
    for _ in range(CROWD):
        delay.came()
    delay.observe(10.0, 10.0)
    assert not delay.behind


def test_a_few_callers_who_stop_the_loop_again_and_again_are_no_crowd() -> None:
    delay = LoopDelay()
    assert not late(delay, 0.0, CROWD - 1)
    assert not late(delay, BURST_S, 0)
    assert late(delay, 2 * BURST_S, 1)


@pytest.fixture
def received() -> list[bytes]:
    return []


@pytest.fixture
def refused() -> list[str]:
    return []


async def test_calls_on_points_that_have_little_time_are_refused_unread_and_others_are_answered(
    received: list[bytes], refused: list[str]
) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        received.append(request)
        return request

    def handlers(service: str, method: str) -> Any:
        return grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(answer)})

    shedding = Shedding(refused.append)
    server = serving.new_server(outermost=[shedding])
    server.add_generic_rpc_handlers((handlers(search_service.NAME, "Search"), handlers("other", "Call")))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            search = channel.unary_unary(METHOD)
            assert await search(b"1", timeout=TIMEOUT_S) == b"1"
            shedding.delay.behind, shedding.delay.last_s = True, 1.5 * SHARE_MAX * TIMEOUT_S
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await search(b"2", timeout=TIMEOUT_S)
            error = errors.from_rpc_error(caught.value)
            assert (error.reason, refused) == ("OVERLOADED", ["OVERLOADED"])
            assert await channel.unary_unary("/other/Call")(b"3", timeout=TIMEOUT_S) == b"3"
            assert await search(b"who has time may wait", timeout=2 * TIMEOUT_S) == b"who has time may wait"
            shedding.delay.behind = False
            assert await search(b"4", timeout=TIMEOUT_S) == b"4"
        assert received == [b"1", b"3", b"who has time may wait", b"4"]
    finally:
        await server.stop(0)


async def test_of_a_connection_that_is_refused_again_and_again_no_more_is_read_and_of_others_all(
    received: list[bytes], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 150
    monkeypatch.setattr(shedding_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(shedding_module, "random", SimpleNamespace(random=lambda: 0.0))

    async def refuse(request: bytes, context: Any) -> bytes:
        received.append(request)
        if request == b"bad":
            raise errors.ResourceExhausted("full")
        return request

    shedding = Shedding(refused.append)
    server = serving.new_server(outermost=[shedding])
    methods = {"Search": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(search_service.NAME, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    own = [("grpc.use_local_subchannel_pool", 1)]
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) as flooding,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) as other,
        ):
            for _ in range(calls):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await flooding.unary_unary(METHOD)(b"bad", timeout=TIMEOUT_S)
                assert errors.from_rpc_error(caught.value).reason == "OVERLOADED"
                assert await other.unary_unary(METHOD)(b"good", timeout=TIMEOUT_S) == b"good"
    finally:
        await server.stop(0)
    assert received.count(b"good") == calls
    assert 0 < received.count(b"bad") < calls
    assert len(refused) == calls - received.count(b"bad"), "and each is counted"


async def test_it_sees_its_own_loop_stop() -> None:
    shedding = Shedding(lambda reason: None)
    watching = asyncio.create_task(shedding.run())
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not shedding.delay.behind:
                shedding.delay.came()
                loop.call_soon(_work_for, 2 * BURST_S)
                await asyncio.sleep(0)
    finally:
        watching.cancel()


def _work_for(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    while loop.time() < until_s:
        pass
