"""Instruments, bounded label values, and the HTTP port that a scraper may treat as badly as it likes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from vectorfleet.metrics import NAMES_MAX, OTHERS, Calls, Metrics, Names
from vectorfleet.metrics_endpoint import CONNECTIONS_MAX, MetricsEndpoint, metrics_address
from vectorfleet.telemetry.work import Work

TIMEOUT_S = 20.0


async def refresh() -> None:
    """Nothing to set."""


@contextlib.asynccontextmanager
async def served(metrics: Metrics) -> AsyncIterator[tuple[tuple[str, int], MetricsEndpoint]]:
    endpoint = MetricsEndpoint(metrics, refresh)
    address = await endpoint.listen("127.0.0.1", 0)
    host, _, port = address.rpartition(":")
    try:
        yield (host, int(port)), endpoint
    finally:
        await endpoint.close()


async def ask(address: tuple[str, int], request: str) -> tuple[str, str]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request.encode())
    async with asyncio.timeout(TIMEOUT_S):
        answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return head.partition("\r\n")[0], body


async def scrape(address: tuple[str, int]) -> str:
    status, body = await ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.1 200 OK"
    return body


def ended(name: str, seconds: float, error: str = "") -> Work:
    work = Work(name)
    work.ended_ns = work.begun_ns + int(seconds * 1e9)
    work.error = error
    return work


def text(metrics: Metrics) -> str:
    return metrics.text()[0].decode()


# ------------------------------------------------------------------ instruments


def test_calls_are_counted_by_method_code_and_reason() -> None:
    metrics = Metrics("router")
    calls = Calls(metrics)
    assert calls.ended(ended("vectorfleet.v1.SearchService/Search", 0.003)) == "Search"
    assert calls.ended(ended("vectorfleet.v1.SearchService/SearchStream message", 0.2, "SHARD_UNAVAILABLE")) == "Search"
    assert calls.ended(ended("vectorfleet.v1.PointService/BulkUpsert", 7.0, "DISK_FULL")) == "BulkUpsert"
    lines = text(metrics).splitlines()
    for line in (
        'vectorfleet_router_requests_total{code="OK",method="Search"} 1.0',
        'vectorfleet_router_requests_total{code="UNAVAILABLE",method="Search"} 1.0',
        'vectorfleet_router_requests_total{code="RESOURCE_EXHAUSTED",method="BulkUpsert"} 1.0',
        'vectorfleet_router_errors_total{method="Search",reason="SHARD_UNAVAILABLE"} 1.0',
        'vectorfleet_router_errors_total{method="BulkUpsert",reason="DISK_FULL"} 1.0',
        'vectorfleet_router_request_seconds_bucket{le="0.2",method="Search"} 2.0',
        'vectorfleet_router_request_seconds_count{method="Search"} 2.0',
    ):
        assert line in lines


def test_a_histogram_counts_up_to_each_bound_and_names_an_example() -> None:
    metrics = Metrics("router")
    took = metrics.histogram("took_seconds", "…", (0.1, 1.0), "method").labels("Search")
    for amount in (0.05, 0.1, 0.5, 7.0):  # a bound belongs to what it bounds
        took.observe(amount, {"trace_id": "abc"} if amount == 0.5 else None)
    name = "vectorfleet_router_took_seconds"
    lines = [line for line in text(metrics).splitlines() if line.startswith(name)]
    assert lines == [
        f'{name}_bucket{{le="0.1",method="Search"}} 2.0',
        f'{name}_bucket{{le="1.0",method="Search"}} 3.0',
        f'{name}_bucket{{le="+Inf",method="Search"}} 4.0',
        f'{name}_count{{method="Search"}} 4.0',
        f'{name}_sum{{method="Search"}} 7.65',
    ]
    assert '3.0 # {trace_id="abc"} 0.5 ' in metrics.text("application/openmetrics-text; version=1.0.0")[0].decode()


def test_what_is_off_counts_nothing() -> None:
    metrics = Metrics("router", enabled=False)
    Calls(metrics).ended(ended("vectorfleet.v1.SearchService/Search", 0.1, "DISK_FULL"))
    metrics.gauge("depth", "…").set(3)
    assert text(metrics) == ""


def test_names_are_bounded_and_those_that_go_make_room() -> None:
    names = Names()
    labels = {names.label(f"c{number}") for number in range(10_000)}
    assert labels == {f"c{number}" for number in range(NAMES_MAX)} | {OTHERS}
    assert names.retain({"c1", "c2"}) != []
    assert names.label("c5000") == "c5000"
    assert names.label("c1") == "c1"


@pytest.mark.parametrize("value", ["", "7790", "localhost", ":7790", "host:port", "host:65536", "on", "host:-1"])
def test_an_address_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither HOST:PORT nor 'off'"):
        metrics_address(value)


def test_addresses() -> None:
    assert metrics_address("off") is None
    assert metrics_address("0.0.0.0:7790") == ("0.0.0.0", 7790)  # noqa: S104
    assert metrics_address("[::1]:0") == ("::1", 0)


# ------------------------------------------------------------------ the port


async def test_it_answers_one_path_to_one_method() -> None:
    metrics = Metrics("shard")
    metrics.counter("seals_total", "…").inc()
    async with served(metrics) as (address, _):
        assert "vectorfleet_shard_seals_total 1.0" in await scrape(address)
        assert (await ask(address, "GET / HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 404 Not Found"
        assert (await ask(address, "POST /metrics HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 405 Method Not Allowed"
        assert (await ask(address, "\r\n\r\n"))[0] == "HTTP/1.1 405 Method Not Allowed"
        assert await ask(address, "GET /" + 20_000 * "x") == ("", ""), "a head without end is cut off"
        assert (
            "# EOF"
            in (
                await ask(
                    address, "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
                )
            )[1]
        )


async def test_a_port_that_is_taken_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}.*choose another --metrics-address, or off"):
            await MetricsEndpoint(Metrics("router"), refresh).listen("127.0.0.1", port)


async def test_a_scraper_that_never_asks_or_never_reads_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorfleet.metrics_endpoint.PATIENCE_S", 6.0)
    metrics = Metrics("router")
    metrics.counter("many_total", "…", "name").labels(8_000_000 * "x")  # more than the kernel's buffers take
    async with served(metrics) as (address, endpoint):
        silent, other = await asyncio.open_connection(*address)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with deaf:
            deaf.connect(address)
            deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert "vectorfleet_router_many_total" in await scrape(address), "others are served meanwhile"
            async with asyncio.timeout(TIMEOUT_S):
                assert await silent.read() == b"", "it was hung up on"
                while endpoint.connections:  # noqa: ASYNC110 (nothing tells)
                    await asyncio.sleep(0.01)
        other.close()


async def test_connections_are_bounded_and_come_free_again() -> None:
    async with served(Metrics("router")) as (address, _):
        held = [await asyncio.open_connection(*address) for _ in range(CONNECTIONS_MAX)]
        reader, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b"", "one too many"
        writer.close()
        for _, one in held:
            one.close()
            await one.wait_closed()
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(AssertionError, ConnectionResetError):
                    assert "vectorfleet_build_info" in await scrape(address)
                    break
