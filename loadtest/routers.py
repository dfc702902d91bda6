"""What a second router on the same port brings: 64 callers over 8 connections, of one router and of two, same data, same run.

Two clusters run all the time and take turns, so that whatever else the machine does falls on both. The kernel gives each
connection to one of the routers on a port, so the callers share several, each drawn anew until every router has some.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import psutil

import vectorfleet
from loadtest import datasets, speed, usage
from loadtest.asking import TIMEOUT_S, Target, asker
from loadtest.callers import Ask, Asked, Floats, Load, Rows, tasks
from loadtest.fleet import local_cluster
from loadtest.records import Record, table
from vectorfleet.local import LocalCluster

POINTS: Final = 100_000
ROUNDS: Final = 4
SECONDS: Final = 3.0
CALLERS: Final = 64
CONNECTIONS: Final = 8
DRAWS_MAX: Final = 20

Log = Callable[[str], None]


class Side:
    """One of the two clusters, loaded, and the figures of its rounds."""

    def __init__(self, routers: int, fleet: LocalCluster, data: datasets.VectorSet) -> None:
        self.routers = routers
        self._fleet = fleet
        self._data = data
        with vectorfleet.Client(fleet.address, timeout=60.0) as client:
            self.parameters = speed.load(client, data).parameters
        self.queries_s: list[float] = []
        self.p50_ms: list[float] = []
        self.router_cpu_ms: list[float] = []

    def ask(self) -> None:
        """One round of 64 callers."""
        target = Target(self._fleet.address, self._data.name, self.parameters)
        with usage.measured(self._fleet) as used:
            asked = asyncio.run(self._through_connections(target))
        found = asked.latencies
        self.queries_s.append(found.queries_s)
        self.p50_ms.append(found.p50_ms)
        self.router_cpu_ms.append(used.of("router") * 1e3 / (found.queries_s * (SECONDS + 1)))

    def figures(self) -> dict[str, float]:
        """Medians over the rounds."""
        return {
            "queries_s": float(np.median(self.queries_s)),
            "p50_ms": float(np.median(self.p50_ms)),
            "router_cpu_ms": float(np.median(self.router_cpu_ms)),
        }

    async def _through_connections(self, target: Target) -> Asked:
        for _ in range(DRAWS_MAX):
            async with contextlib.AsyncExitStack() as stack:
                clients = [vectorfleet.AsyncClient(target.address, timeout=TIMEOUT_S) for _ in range(CONNECTIONS)]
                for client in clients:
                    await stack.enter_async_context(client)
                await asyncio.gather(*(client.count(target.collection) for client in clients))
                if self._spread(target.address):
                    return await _ask_through([asker(client, target) for client in clients], self._data.queries)
        raise RuntimeError(f"{DRAWS_MAX} times, {CONNECTIONS} connections did not reach all {self.routers} routers")

    def _spread(self, address: str) -> bool:
        """Whether each router has its share of the connections, give or take one."""
        port = int(address.rpartition(":")[2])
        counts = [
            sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in process.net_connections())
            for process in (psutil.Process(self._fleet.processes[f"router-{n}"].pid) for n in range(self.routers))
        ]
        return min(counts) >= CONNECTIONS // self.routers - 1


async def _ask_through(asks: Sequence[Ask], queries: Floats) -> Asked:
    """Lets the callers ask, each query through the next connection."""
    turns = itertools.cycle(asks)

    def ask(asked: Floats) -> Awaitable[Rows]:
        return next(turns)(asked)

    return await tasks(ask, queries, Load(CALLERS, 1, SECONDS))


def measure(record: Record, log: Log) -> None:
    """Loads both clusters, lets them take turns, and prints the ratio. It has no bar: it depends on the cores that are left."""
    data = replace(datasets.synthetic(POINTS, 128, queries=1_000), name="routers")
    with contextlib.ExitStack() as stack:
        sides = []
        for routers in (1, 2):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vectorfleet-bench-")))
            log(f"starting a cluster, routers on its port: {routers}")
            sides.append(Side(routers, stack.enter_context(local_cluster(folder, routers=routers)), data))
        sides[1].parameters = sides[0].parameters
        for number in range(ROUNDS):
            # Whoever goes first in one round goes second in the next.
            for side in sides[:: 1 if number % 2 == 0 else -1]:
                side.ask()
                log(f"routers on one port: {side.routers}; {side.queries_s[-1]:.0f} queries a second")
    one, two = (side.figures() for side in sides)
    ratio = two["queries_s"] / one["queries_s"]
    record.add("routers", callers=CALLERS, connections=CONNECTIONS, points=POINTS, one=one, two=two, ratio=ratio)
    rows = [
        {
            "routers on one port": str(side.routers),
            **{name: f"{value:.3f}" if value < 10 else f"{value:.0f}" for name, value in side.figures().items()},
        }
        for side in sides
    ]
    print(table(f"{CALLERS} callers over {CONNECTIONS} connections, medians of {ROUNDS} rounds in turns", rows))
    print(f"two ÷ one, queries a second: {ratio:.2f}", flush=True)
