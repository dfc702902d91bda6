"""`GET /metrics` over plain HTTP, for Prometheus: on the event loop, bounded, and of no use for anything else.

A scraper that is slow, or never reads, holds one of `CONNECTIONS_MAX` connections for at most `PATIENCE_S` and nobody else. The
text is made in a thread, once at a time, since it takes milliseconds that calls would wait for on the loop.

There is no authentication: it listens on loopback unless told otherwise, and a NetworkPolicy guards it elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from vectorfleet.metrics import Metrics

OFF: Final = "off"
DEFAULT: Final = "127.0.0.1:0"
HELP: Final = (
    f"where Prometheus reads metrics, as http://HOST:PORT/metrics; port 0: a free one; {OFF}: nothing is counted"
)
CONNECTIONS_MAX: Final = 16
PATIENCE_S: Final = 5.0
"""For a request to come, and again for its answer to be read."""
_HEAD_BYTES_MAX: Final = 8192
_log = logging.getLogger(__name__)


def metrics_address(value: str) -> tuple[str, int] | None:
    """Reads HOST:PORT; None for `off`. For `argparse`."""
    if value == OFF:
        return None
    host, _, port = value.rpartition(":")
    if not host.strip("[]") or not port.isdecimal() or int(port) >= 2**16:
        raise argparse.ArgumentTypeError(f"{value!r} is neither HOST:PORT nor {OFF!r}")
    return host.strip("[]"), int(port)


class MetricsEndpoint:
    """Serves a process's metrics. Belongs to one event loop."""

    def __init__(self, metrics: Metrics, refresh: Callable[[], Awaitable[None]]) -> None:
        """Does not listen yet.

        Args:
            metrics: what is served.
            refresh: sets the gauges to what holds now; awaited before each scrape, never twice at once.
        """
        self._metrics = metrics
        self._refresh = refresh
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Scrapers that are connected."""
        return len(self._connections)

    async def listen(self, host: str, port: int) -> str:
        """Begins to serve; returns the bound host:port. Raises `OSError` where it cannot be had."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=_HEAD_BYTES_MAX)
        except OSError as error:
            raise OSError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; choose another --metrics-address, or {OFF}"
            ) from error
        bound = self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    async def close(self) -> None:
        """Stops; ends scrapes under way."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def text(self) -> bytes:
        """What a scrape would get now. Raises `TimeoutError`."""
        return (await self._scrape(""))[0]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="metrics connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(head.decode("latin-1"))
            async with asyncio.timeout(PATIENCE_S):
                writer.write(answer)
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            # A scraper that went away, or never asked or read: Prometheus counts its own failures.
            writer.transport.abort()
        except Exception:
            _log.exception("a scrape failed")
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    async def _answer(self, head: str) -> bytes:
        request, *lines = head.split("\r\n")
        method, target, *_ = [*request.split(" "), "", ""]
        if method != "GET" or target.partition("?")[0] != "/metrics":
            status = HTTPStatus.NOT_FOUND if method == "GET" else HTTPStatus.METHOD_NOT_ALLOWED
            return _response(status, b"GET /metrics\n", "text/plain; charset=utf-8")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        text, content_type = await self._scrape(headers.get("accept", ""))
        return _response(HTTPStatus.OK, text, content_type)

    async def _scrape(self, accept: str) -> tuple[bytes, str]:
        async with asyncio.timeout(PATIENCE_S), self._turn:
            await self._refresh()
            return await asyncio.to_thread(self._metrics.text, accept)


def _response(status: HTTPStatus, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
