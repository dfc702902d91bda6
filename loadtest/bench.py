"""`make bench`: quality, speed, memory and churn of a real cluster, measured with one command and without arguments.

Starts two shard servers, a router and etcd on this machine, measures, and stops them. Tables go to the screen, figures
as JSON lines to a file below loadtest/results/. The exit code is 1 where a figure misses its bar. On 2 cores all of it
takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

import vectorfleet
from loadtest import churn, memory, quality, records, speed, speed_tables
from loadtest.fleet import local_cluster
from vectorfleet.local import LocalCluster

PARTS = ("quality", "churn", "speed", "memory")
POINTS = 1_000_000
POINTS_ON_A_SMALL_MACHINE = 200_000
BYTES_NEEDED = 8 << 30
"""Memory and disk that a million points want: the vectors here, in FAISS, and in the cluster's files and page cache."""


class Log:
    """Says on stderr what goes on, and since when."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def __call__(self, message: str) -> None:
        """Prints one line."""
        print(f"[{time.monotonic() - self._start_s:6.1f} s] {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def cluster(log: Log) -> Iterator[LocalCluster]:
    """A cluster of two nodes with data in a temporary folder; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vectorfleet-bench-") as data:
        log("starting etcd, two shard servers and a router")
        with local_cluster(Path(data)) as fleet:
            yield fleet
        log("stopped")


def points_that_fit() -> int:
    """A million, or fewer where memory or disk are short."""
    free = min(psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free)
    return POINTS if free >= BYTES_NEEDED else POINTS_ON_A_SMALL_MACHINE


def measure_quality(record: records.Record, log: Log) -> bool:
    """Runs the quality part on a cluster of its own."""
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        return quality.measure(client, record, log)


def measure_churn(books: list[str], record: records.Record, log: Log) -> bool:
    """Runs the churn part on a cluster of its own."""
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        return churn.measure(client, record, log, books)


def measure_synthetic(points: int, parts: set[str], record: records.Record, log: Log) -> bool:
    """Runs speed and memory, which share one loaded cluster."""
    log(f"drawing {points:,} vectors")
    data, fresh = speed.data_set(points)
    met = True
    found = None
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        before = memory.resident(client)
        loaded = speed.load(client, data)
        log(f"indexed after {loaded.settled_s:.0f} s")
        if "memory" in parts:
            met &= memory.measure(client, data.name, before, record)
        if "speed" in parts:
            parameters, found = speed.measure(fleet, data, fresh, loaded, log)
    if found is not None:
        bare = speed.beside(data, parameters, log)
        speed.record_all(record, data, loaded, parameters, found, bare)
        speed_tables.show(data.name, loaded, parameters, len(data.base), found, bare)
        met &= all(bar.met for bar in speed_tables.bars(loaded, found, bare))
    return met


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description="Measure quality, speed and memory of a real cluster.")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone (may be repeated)")
    parser.add_argument("--points", type=int, help="vectors of the synthetic set (default: a million if they fit)")
    parser.add_argument(
        "--runbook", action="append", metavar="NAME", help=f"runbook of the churn part (default: {churn.RUNBOOK})"
    )
    results = records.ROOT / "loadtest" / "results" / "local.jsonl"
    parser.add_argument(
        "--results", type=Path, default=results, help=f"file to append figures to (default: {results.name})"
    )
    given = parser.parse_args()
    parts = set(given.only or PARTS)
    record, log = records.Record(given.results), Log()
    log(f"{records.machine()}; figures go to {given.results}")
    met = True
    if "quality" in parts:
        met &= measure_quality(record, log)
    if "churn" in parts:
        met &= measure_churn(given.runbook or [churn.RUNBOOK], record, log)
    if parts & {"speed", "memory"}:
        met &= measure_synthetic(given.points or points_that_fit(), parts, record, log)
    log("all bars met" if met else "A BAR WAS MISSED: see the tables")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
