"""`make bench`: quality, speed, memory and churn of a real cluster, measured with one command and without arguments.

Starts two shard servers, a router and etcd on this machine, measures, and stops them. Tables go to the screen, figures
as JSON lines to a file below loadtest/results/. The exit code is 1 where a figure misses its bar. Without arguments it
fits a quarter of an hour on 2 cores; with `--peer`, other stores stand beside the cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

import vectorfleet
from loadtest import (
    churn,
    datasets,
    memory,
    quality,
    records,
    routers,
    runbooks,
    secure,
    speed,
    speed_tables,
    watched,
    wordnet_vectors,
)  # fmt: skip
from loadtest.fleet import local_cluster
from loadtest.peers import measuring, tables
from loadtest.peers.catalogue import PEERS
from vectorfleet.local import LocalCluster

PARTS = ("quality", "churn", "speed", "memory")
FURTHER_PARTS = ("observability", "routers", "secure")
"""Measured where they are asked for."""
SETS = ("mnist", "wordnet", "synthetic")
POINTS = 1_000_000
POINTS_ON_A_SMALL_MACHINE = 200_000
POINTS_MIN = 20_000
POINTS_BESIDE_PEERS = 200_000
"""Most build a graph at a few thousand points a second."""
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
def cluster(log: Log, shard_args: Sequence[str] = ()) -> Iterator[LocalCluster]:
    """A cluster of two nodes with data in a temporary folder; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vectorfleet-bench-") as data:
        log("starting etcd, two shard servers and a router")
        with local_cluster(Path(data), shard_args=shard_args) as fleet:
            yield fleet
        log("stopped")


def points_that_fit() -> int:
    """A million, or fewer where memory or disk are short."""
    free = min(psutil.virtual_memory().available, shutil.disk_usage(tempfile.gettempdir()).free)
    return POINTS if free >= BYTES_NEEDED else POINTS_ON_A_SMALL_MACHINE


def measure_quality(whole: bool, record: records.Record, log: Log) -> bool:
    """Runs the quality part on a cluster of its own."""
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        return quality.measure(client, record, log, whole=whole)


def measure_churn(books: list[str], sets: set[str], fresh_every: int, record: records.Record, log: Log) -> bool:
    """Runs the churn part on a cluster of its own, on those of its two sets."""
    with cluster(log, churn.SHARD_ARGS) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:

        def mnist() -> datasets.VectorSet:
            return datasets.mnist(points=churn.POINTS, queries=churn.QUERIES)

        def wordnet() -> datasets.VectorSet:
            return wordnet_vectors.read(client, churn.POINTS, churn.QUERIES, log)

        met = True
        for read in (one for name, one in (("mnist", mnist), ("wordnet", wordnet)) if name in sets):
            try:
                names = runbooks.names() if "all" in books else books
                met &= churn.measure(fleet, client, read(), record, log, names, fresh_every)
            except datasets.AbsentDataError as absent:
                log(f"passed over: {absent}")
        return met


def measure_synthetic(points: int, parts: set[str], peers: Sequence[str], record: records.Record, log: Log) -> bool:
    """Runs speed and memory on the synthetic set, which share one loaded cluster. Speed has its bars here."""
    log(f"drawing {points:,} vectors")
    data, fresh = speed.data_set(points)
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        before = memory.resident(client)
        loaded = _loaded(client, data, log)
        met = "memory" not in parts or memory.measure(client, data.name, before, record)
        if "speed" not in parts:
            return met
        found = speed.measure(fleet, data, fresh, loaded, log)
    bare, reached = _beside(data, loaded, found, peers, record, log)
    reached = [*speed_tables.bars(loaded, found, bare), *reached]
    speed_tables.show_bars(reached)
    return met and all(bar.met for bar in reached)


def measure_mnist(peers: Sequence[str], record: records.Record, log: Log) -> bool:
    """Runs speed on real vectors: few and long ones, at the recall that the defaults give. Only peers have bars here."""
    try:
        data = datasets.mnist(queries=1_000)
    except datasets.AbsentDataError as absent:
        log(f"passed over: {absent}")
        return True
    with cluster(log) as fleet, vectorfleet.Client(fleet.address, timeout=60.0) as client:
        loaded = _loaded(client, data, log)
        found = speed.measure(fleet, data, None, loaded, log)
    _, reached = _beside(data, loaded, found, peers, record, log)
    if reached:
        speed_tables.show_bars(reached)
    return all(bar.met for bar in reached)


def _loaded(client: vectorfleet.Client, data: datasets.VectorSet, log: Log) -> speed.Loaded:
    loaded = speed.load(client, data)
    log(f"indexed after {loaded.settled_s:.0f} s")
    return loaded


def _beside(
    data: datasets.VectorSet, loaded: speed.Loaded, found: speed.Found, peers: Sequence[str], record: records.Record,
    log: Log,
) -> tuple[dict[str, Any], list[speed_tables.Bar]]:  # fmt: skip
    """Measures FAISS and the peers where the cluster was; returns FAISS's figures, and the bars against peers."""
    bare = speed.beside(data, found.parameters, log)
    speed.record_all(record, data, loaded, found, bare)
    speed_tables.show(data.name, loaded, len(data.base), found, bare)
    if not peers:
        return bare, []
    outcomes = []
    for outcome in measuring.measure(peers, data, found.closed["batches of 100"].recall, log):
        record.add("peer", data=data.name, **measuring.figures(outcome))
        outcomes.append(outcome)
    tables.show(data.name, loaded, len(data.base), found, bare, outcomes)
    return bare, tables.bars(found, outcomes)


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description="Measure quality, speed and memory of a real cluster.")
    parser.add_argument(
        "--only", choices=(*PARTS, *FURTHER_PARTS), action="append", help="measure this part alone (may be repeated)"
    )
    parser.add_argument(
        "--whole-scifact", action="store_true",
        help=f"embed all of SciFact, which takes minutes more, not {quality.TEXTS:,} of its texts",
    )  # fmt: skip
    parser.add_argument(
        "--set",
        choices=SETS,
        action="append",
        dest="sets",
        help="measure speed (mnist, synthetic) and churn (mnist, wordnet) on this set alone (may be repeated)",
    )
    parser.add_argument(
        "--points", type=int,
        help=f"vectors of the synthetic set (default: a million if they fit, {POINTS_BESIDE_PEERS:,} beside peers)",
    )  # fmt: skip
    parser.add_argument(
        "--peer", choices=[*PEERS, "all"], action="append", default=[],
        help="measure speed beside this store too, installed for it into an environment of its own (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--runbook",
        action="append",
        metavar="NAME",
        help=f"runbook of the churn part, or all (default: {churn.RUNBOOK})",
    )
    parser.add_argument(
        "--fresh-every", type=int, default=1, metavar="N",
        help="churn part: of each N searches that are to be compared with a freshly built collection, compare the one "
        "that found least (default: 1, each)",
    )  # fmt: skip
    results = records.ROOT / "loadtest" / "results" / "local.jsonl"
    parser.add_argument(
        "--results", type=Path, default=results, help=f"file to append figures to (default: {results.name})"
    )
    given = parser.parse_args()
    peers = list(PEERS) if "all" in given.peer else list(dict.fromkeys(given.peer))
    if given.points is not None and given.points < POINTS_MIN:
        parser.error(f"--points {given.points}: fewer than {POINTS_MIN:,} get no index to be measured")
    if given.fresh_every < 1:
        parser.error(f"--fresh-every {given.fresh_every}: at least 1")
    parts, sets = set(given.only or PARTS), set(given.sets or SETS)
    points = given.points or (min(POINTS_BESIDE_PEERS, points_that_fit()) if peers else points_that_fit())
    if peers and "speed" not in parts:
        parser.error("--peer stands beside the speed part, which --only leaves out")
    record, log = records.Record(given.results), Log()
    log(f"{records.machine()}; figures go to {given.results}")
    met = True
    if "quality" in parts:
        met &= measure_quality(given.whole_scifact, record, log)
    if "churn" in parts:
        met &= measure_churn(given.runbook or [churn.RUNBOOK], sets, given.fresh_every, record, log)
    if "speed" in parts and "mnist" in sets:
        met &= measure_mnist(peers, record, log)
    if "memory" in parts or ("speed" in parts and "synthetic" in sets):
        met &= measure_synthetic(points, parts, peers, record, log)
    if "observability" in parts:
        met &= watched.measure(given.points or POINTS_ON_A_SMALL_MACHINE, record, log)
    if "routers" in parts:
        routers.measure(record, log)
    if "secure" in parts:
        reached = secure.measure(record, log)
        speed_tables.show_bars([reached])
        met &= reached.met
    log("all bars met" if met else "A BAR WAS MISSED: see the tables")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: all that was started has been stopped")
