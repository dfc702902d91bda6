"""The channel and server options as gRPC takes them: a quiet call lives, and a peer that froze is noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from vectorfleet.rpc_options import CHANNEL_OPTIONS, SERVER_OPTIONS

PINGS_DURING_CALL = 6
"""gRPC's servers forgive two pings that come too soon, and its channels send one a second at most."""
METHOD = "/test.Quiet/Call"


def hasty(options: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same options with pings ten times as often as they are, and allowed so."""
    often = {"grpc.keepalive_time_ms", "grpc.http2.min_ping_interval_without_data_ms"}
    assert often & dict(options).keys()
    return [(key, value // 10 if key in often else value) for key, value in options]


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=hasty(CHANNEL_OPTIONS))


@contextlib.asynccontextmanager
async def serving(release: asyncio.Event) -> AsyncIterator[int]:
    """A server whose one method answers when it is released; yields its port."""

    async def wait(request: bytes, context: object) -> bytes:
        await release.wait()
        return request

    server = grpc.aio.server(options=hasty(SERVER_OPTIONS))
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Quiet", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_quiet_call_outlives_its_pings() -> None:
    release = asyncio.Event()
    async with serving(release) as port, channel_to(port) as channel:
        call = channel.unary_unary(METHOD)(b"x", timeout=60)
        interval_s = dict(hasty(CHANNEL_OPTIONS))["grpc.keepalive_time_ms"] / 1000
        asyncio.get_running_loop().call_later(PINGS_DURING_CALL * interval_s, release.set)
        assert await call == b"x"


async def test_a_frozen_peer_is_noticed_before_the_deadline() -> None:
    release = asyncio.Event()
    async with serving(release) as port, frozen_on_demand(port) as (way, freeze), channel_to(way) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(METHOD)(b"x", timeout=60)
        freeze.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, caught.value.details()


@contextlib.asynccontextmanager
async def frozen_on_demand(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A way to a port that passes nothing on any more once it is told to, and closes nothing; its own port, and the event."""
    freeze = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not freeze.is_set():
                writer.write(data)
                await writer.drain()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            back.close()
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as proxy:
        yield proxy.sockets[0].getsockname()[1], freeze
