"""What it costs to be watched: throughput with metrics, JSON logs and 1 % of traces, over that with all of it off.

Two clusters with the same data stand side by side, and are asked in turns, a few seconds each, in an order that is reversed
each time: what the machine does meanwhile hits both alike. The one that is watched is scraped each second, and sends its spans
to a collector that takes them and throws them away; the other waits, which costs next to nothing.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

import vectorfleet
from loadtest import loading, speed
from loadtest.asking import Target, closed_loop
from loadtest.callers import Load
from loadtest.records import Record, table
from loadtest.speed_tables import Bar
from vectorfleet.local import LocalCluster

ROUNDS: Final = 10
CALLERS: Final = 64
SECONDS: Final = 4.0
TRACE_RATIO: Final = "0.01"
SCRAPE_INTERVAL_S: Final = 1.0
BAR: Final = 0.95
OFF: Final = ("--metrics-address", "off", "--slow-query-ms", "0", "--log-level", "error", "--trace-ratio", "0")

Log = Callable[[str], None]


def measure(points: int, record: Record, log: Log) -> bool:
    """Measures, prints a table; returns whether the bar was met."""
    data, _ = speed.data_set(points)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vectorfleet-bench-")))
        collector = stack.enter_context(_collector())
        on = ("--log-format", "json", "--otlp-endpoint", f"http://{collector}", "--trace-ratio", TRACE_RATIO)
        targets = {}
        for name, arguments in (("on", on), ("off", OFF)):
            log(f"starting and loading a cluster with all of it {name}")
            fleet = LocalCluster(folder / name, nodes=2, shard_args=arguments, router_args=arguments)
            stack.enter_context(fleet)
            with vectorfleet.Client(fleet.address, timeout=60.0) as client:
                targets[name] = Target(fleet.address, data.name, speed.load(client, data).parameters)
                loading.settle(client, data.name)
            if name == "on":
                stack.enter_context(_scraped(fleet))
        found: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(ROUNDS):
            for name in ("on", "off") if turn % 2 else ("off", "on"):
                asked = closed_loop(targets[name], data.queries, Load(CALLERS, 1, SECONDS, 0.5), "client")
                found[name].append(asked.latencies.queries_s)
            log(f"turn {turn + 1} of {ROUNDS}: on {found['on'][-1]:.0f}, off {found['off'][-1]:.0f} queries a second")
    return _show(found, len(data.base), record)


def _show(found: dict[str, list[float]], points: int, record: Record) -> bool:
    ratios = [on / off for on, off in zip(found["on"], found["off"], strict=True)]
    bar = Bar("searches watched ÷ not watched", statistics.median(ratios), BAR)
    record.add(
        "watched", points=points, callers=CALLERS, rounds=ROUNDS, trace_ratio=float(TRACE_RATIO),
        on_queries_s=statistics.median(found["on"]), off_queries_s=statistics.median(found["off"]),
        ratio=bar.value, ratio_of_sums=sum(found["on"]) / sum(found["off"]), ratios=ratios,
    )  # fmt: skip
    rows = [
        {"": name, "queries a second, median": f"{statistics.median(rates):.0f}", "of all turns": _range(rates)}
        for name, rates in found.items()
    ]
    ratio = {
        "": f"on ÷ off (bar: {BAR})",
        "queries a second, median": f"{bar.value:.3f}",
        "of all turns": _range(ratios),
    }
    print(table(f"Being watched: {CALLERS} callers, {points:,} points, {ROUNDS} turns", [*rows, ratio]), flush=True)
    return bar.met


def _range(values: Sequence[float]) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.0f} to {high:.0f}" if high > 10 else f"{low:.3f} to {high:.3f}"


@contextlib.contextmanager
def _scraped(fleet: LocalCluster) -> Iterator[None]:
    """Reads the metrics of all processes each second, as Prometheus would, from a thread."""
    addresses = [process.metrics_address for process in fleet.processes.values() if process.metrics_address]
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_INTERVAL_S):
            for address in addresses:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape, name="scraping")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """An OpenTelemetry collector that takes whatever it is sent; yields its host:port."""

    class Anything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)
