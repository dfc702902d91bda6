"""What security costs: a cluster as `vectorfleet up --secure` starts it beside one in the clear, same data, same run.

Both run all the time and take turns, so that whatever else the machine does falls on both. One client of 64 callers asks each.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

import vectorfleet
from loadtest import datasets, scoring, speed, usage
from loadtest.asking import Target, closed_loop
from loadtest.bare_faiss import Parameters
from loadtest.callers import Load
from loadtest.fleet import local_cluster
from loadtest.records import Record, table
from loadtest.speed_tables import Bar
from vectorfleet.local import LocalCluster

POINTS: Final = 100_000
ROUNDS: Final = 4
SECONDS: Final = 3.0
CALLERS: Final = 64
SHARE: Final = 0.8
"""Of the queries a second in the clear, that remain with TLS and authentication."""

Log = Callable[[str], None]


class Side:
    """One of the two clusters, loaded, and the figures of its rounds."""

    def __init__(self, name: str, fleet: LocalCluster, data: datasets.VectorSet) -> None:
        self.name = name
        self._fleet = fleet
        self._data = data
        with vectorfleet.Client(fleet.address, timeout=60.0, security=fleet.security) as client:
            self.parameters = speed.load(client, data).parameters
        self.queries_s: list[float] = []
        self.p50_ms: list[float] = []
        self.servers_cpu_ms: list[float] = []
        self.recall = 0.0

    def ask(self, parameters: Parameters, bounds: NDArray[np.float64]) -> None:
        """One round of 64 callers."""
        target = Target(self._fleet.address, self._data.name, parameters, self._fleet.security)
        with usage.measured(self._fleet) as used:
            asked = closed_loop(target, self._data.queries, Load(CALLERS, 1, SECONDS), "client")
        found = asked.latencies
        self.queries_s.append(found.queries_s)
        self.p50_ms.append(found.p50_ms)
        self.servers_cpu_ms.append(used.servers_s * 1e3 / (found.queries_s * (SECONDS + 1)))
        queries = np.fromiter(asked.rows, np.int64)
        rows = np.stack([asked.rows[query] for query in asked.rows])
        self.recall = scoring.recall_by_distance(
            self._data.base, self._data.queries[queries], np.maximum(rows, -1), bounds[queries]
        )

    def figures(self) -> dict[str, float]:
        """Medians over the rounds."""
        return {
            "queries_s": float(np.median(self.queries_s)),
            "p50_ms": float(np.median(self.p50_ms)),
            "servers_cpu_ms": float(np.median(self.servers_cpu_ms)),
            "recall": self.recall,
        }


def measure(record: Record, log: Log) -> Bar:
    """Loads both clusters and lets them take turns; returns the ratio with its bar."""
    data = replace(datasets.synthetic(POINTS, 128, queries=1_000), name="secure")
    bounds = scoring.nearest_distances(data.base, data.queries, speed.K)
    with contextlib.ExitStack() as stack:
        sides = []
        for name, secure in (("in the clear", False), ("TLS and authentication", True)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vectorfleet-bench-")))
            log(f"starting a cluster: {name}")
            fleet = stack.enter_context(local_cluster(folder, secure=secure))
            sides.append(Side(name, fleet, data))
        for number in range(ROUNDS):
            # Whoever goes first in one round goes second in the next.
            for side in sides[:: 1 if number % 2 == 0 else -1]:
                side.ask(sides[0].parameters, bounds)
                log(f"{side.name}: {side.queries_s[-1]:.0f} queries a second")
    clear, secure_side = (side.figures() for side in sides)
    ratio = secure_side["queries_s"] / clear["queries_s"]
    record.add("secure", callers=CALLERS, points=POINTS, clear=clear, secure=secure_side, ratio=ratio)
    rows = [
        {
            "cluster": side.name,
            **{name: f"{value:.3f}" if value < 10 else f"{value:.0f}" for name, value in side.figures().items()},
        }
        for side in sides
    ]
    print(table(f"{CALLERS} callers of one query each, medians of {ROUNDS} rounds in turns", rows))
    return Bar(f"{CALLERS} callers: TLS and authentication on ÷ off, queries/s", ratio, SHARE)
