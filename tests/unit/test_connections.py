"""What strangers may hold on a server, with real connections: none of it harms the calls of others."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.certificates import LOOPBACK, authority
from vectorfleet import errors, limits, open_files
from vectorfleet.authority import Subject
from vectorfleet.rpc_options import CHANNEL_OPTIONS, SERVER_OPTIONS

METHOD = "/test.Echo/Call"
STREAM = "/test.Echo/Stream"
TIMEOUT_S = 30.0


class Echo:
    """Answers with what it got, and remembers from which connections it was asked."""

    def __init__(self) -> None:
        self.peers: set[str] = set()

    async def call(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.peers.add(context.peer())
        return request

    async def stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


@contextlib.asynccontextmanager
async def serving(echo: Echo, **options: int) -> AsyncIterator[int]:
    """A server with our options, some of them (`max_connection_age_ms=…`) made small; yields its port."""
    changed = {f"grpc.{name}": value for name, value in options.items()}
    assert changed.keys() <= dict(SERVER_OPTIONS).keys(), "only what servers set is tested"
    server = grpc.aio.server(options=list({**dict(SERVER_OPTIONS), **changed}.items()))
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(echo.call),
        "Stream": grpc.stream_stream_rpc_method_handler(echo.stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def channel_to(port: int) -> grpc.aio.Channel:
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


async def refusal(call: grpc.aio.UnaryUnaryCall) -> errors.VectorfleetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.from_rpc_error(caught.value)


async def test_no_call_fails_when_connections_grow_old() -> None:
    echo = Echo()
    async with serving(echo, max_connection_age_ms=100) as port, channel_to(port) as channel:
        ask = channel.unary_unary(METHOD)

        async def caller() -> None:
            while len(echo.peers) < 4:
                assert await ask(b"x", timeout=TIMEOUT_S) == b"x"

        stream = channel.stream_stream(STREAM)(timeout=TIMEOUT_S)
        await stream.write(b"first")
        assert await stream.read() == b"first"
        await asyncio.gather(*(caller() for _ in range(4)))
        # A stream lives on beside three younger connections.
        await stream.write(b"last")
        assert await stream.read() == b"last"
        stream.cancel()


async def test_a_threaded_client_does_not_notice_old_connections_either() -> None:
    echo = Echo()

    def ask_on(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
            ask = channel.unary_unary(METHOD)
            while len(echo.peers) < 3:
                assert ask(b"x", timeout=TIMEOUT_S) == b"x"

    async with serving(echo, max_connection_age_ms=100) as port:
        await asyncio.to_thread(ask_on, port)


async def test_a_connection_that_says_nothing_is_closed_and_others_are_served() -> None:
    async with serving(Echo(), server_handshake_timeout_ms=300) as port, channel_to(port) as channel:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        _, slow_writer = silent[0]
        slow_writer.write(b"PRI * HTTP/2.0\r\n")  # the beginning of a handshake, and no more
        assert await channel.unary_unary(METHOD)(b"x", timeout=TIMEOUT_S) == b"x"
        for reader, writer in silent:
            async with asyncio.timeout(TIMEOUT_S):
                await reader.read()  # until it is closed
            writer.close()


async def test_a_tls_handshake_that_does_not_end_is_given_up() -> None:
    (certificate, key), options = (
        authority().issue(Subject("router", "spiffe://tests/router"), LOOPBACK),
        dict(SERVER_OPTIONS),
    )
    server = grpc.aio.server(options=list({**options, "grpc.server_handshake_timeout_ms": 300}.items()))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
    async with asyncio.timeout(TIMEOUT_S):
        await reader.read()  # until it is closed
    writer.close()
    await server.stop(None)


async def test_connections_beyond_the_limit_are_refused_and_the_others_go_on() -> None:
    async with (
        serving(Echo(), max_allowed_incoming_connections=2) as port,
        channel_to(port) as first,
        channel_to(port) as second,
        channel_to(port) as third,
    ):
        for channel in (first, second):
            assert await channel.unary_unary(METHOD)(b"x", timeout=TIMEOUT_S) == b"x"
        assert (await refusal(third.unary_unary(METHOD)(b"x", timeout=TIMEOUT_S))).reason == "UNREACHABLE"
        assert await first.unary_unary(METHOD)(b"y", timeout=TIMEOUT_S) == b"y"


async def test_headers_over_the_limit_are_refused() -> None:
    headers = (("x-long", "x" * limits.METADATA_BYTES_MAX),)
    async with serving(Echo()) as port, channel_to(port) as channel:
        error = await refusal(channel.unary_unary(METHOD)(b"x", metadata=headers, timeout=TIMEOUT_S))
        assert isinstance(error, errors.ResourceExhausted)
        assert error.reason == "OVERLOADED"
        assert await channel.unary_unary(METHOD)(b"x", timeout=TIMEOUT_S) == b"x"


async def test_a_compressed_message_is_refused_before_it_is_inflated() -> None:
    bomb = bytes(limits.MESSAGE_BYTES_MAX - 1024)  # within the limit, so that only its compression is at fault
    async with serving(Echo()) as port, channel_to(port) as channel:
        ask = channel.unary_unary(METHOD)
        assert (
            await refusal(ask(bomb, compression=grpc.Compression.Gzip, timeout=TIMEOUT_S))
        ).reason == "UNIMPLEMENTED"
        assert await ask(b"x", timeout=TIMEOUT_S) == b"x"


async def test_a_message_over_the_limit_is_told_from_other_exhaustion() -> None:
    async with serving(Echo()) as port:
        unlimited = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unlimited) as channel:
            error = await refusal(channel.unary_unary(METHOD)(bytes(limits.MESSAGE_BYTES_MAX + 1), timeout=TIMEOUT_S))
    assert error.reason == "MESSAGE_TOO_LARGE"


def test_the_soft_limit_of_open_files_is_raised_and_half_of_it_is_for_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1000, before[1]), before[1]))
    try:
        assert open_files.connections_max() == min(1000, before[1]) // 2
        assert open_files.raise_limit() == before[1] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert open_files.connections_max() <= limits.CONNECTIONS_MAX
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
