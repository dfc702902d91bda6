"""`make overload`: what a cluster does when five times more is asked of it than it can answer.

Open loop: requests come due at random moments of a given rate, whether others were answered or not. *Goodput* is the answers that
came within the deadline, from all shards. First the rate at which goodput is highest is looked for, then five times that
goodput is offered. What it must show: goodput stays at 80 % of the peak at least, what is refused is refused soon and says
`RESOURCE_EXHAUSTED`, no process grows, and afterwards all is as before.

A request carries several queries (`--size`), so that it costs the cluster far more than it costs this process, which makes the
load on the same cores: with one query a request, at five times the peak, the generator alone would fill them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import grpc
import numpy as np
import psutil

import vectorfleet
from loadtest import datasets, loading, records
from loadtest.asking import arrivals
from loadtest.fleet import local_cluster
from vectorfleet import errors
from vectorfleet.local import LocalCluster
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import search_service_pb2

Send: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"  # a type that only checkers see
COLLECTION: Final = "overload"
METHOD: Final = "/vectorfleet.v1.SearchService/Search"
CHANNELS: Final = 4
CALLERS: Final = 8
"""Of the closed loop that finds roughly what the cluster can do."""
FACTOR: Final = 5.0
GOODPUT_SHARE_MIN: Final = 0.8
GROWTH_SHARE_MAX: Final = 0.1
"""Of a process's resident memory at the end of the overload, over that at its first third."""
STEP: Final = 1.25
STEPS_MAX: Final = 10
OK: Final = "answered in time"
LATE: Final = "answered too late"


@dataclass
class Offered:
    """What became of requests that came due at a rate."""

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)
    """Seconds of each good answer, from the moment at which it was due."""
    refused_s: list[float] = field(default_factory=list)
    """Seconds until each refusal."""

    @property
    def due_s(self) -> float:
        """Requests a second that did come due."""
        return self.outcomes.total() / self.seconds

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.outcomes[OK] / self.seconds


@dataclass(frozen=True)
class Load:
    """What is asked, and for how long each asker waits."""

    address: str
    requests: Sequence[bytes]
    deadline_s: float


async def offer(load: Load, a_second: float, seconds: float, seed: int) -> Offered:
    """Sends requests as they come due, whatever became of those before."""
    offered = Offered(seconds)

    async def call(send: Send, number: int, due_s: float) -> None:
        try:
            await send(load.requests[number % len(load.requests)], timeout=load.deadline_s)
        except grpc.aio.AioRpcError as error:
            offered.outcomes[errors.from_rpc_error(error).reason] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                offered.refused_s.append(time.perf_counter() - due_s)
            return
        taken_s = time.perf_counter() - due_s
        if taken_s > load.deadline_s:
            offered.outcomes[LATE] += 1
        else:
            offered.outcomes[OK] += 1
            offered.answered_s.append(taken_s)

    async with _channels(load.address) as sends, asyncio.TaskGroup() as tasks:
        begin_s = time.perf_counter()
        for number, due_s in enumerate(arrivals(a_second, seconds, seed)):
            pause_s = begin_s + due_s - time.perf_counter()
            if pause_s > 0 or number % 16 == 0:
                await asyncio.sleep(max(0.0, pause_s))
            tasks.create_task(call(sends[number % len(sends)], number, begin_s + due_s))
    return offered


async def closed(load: Load, seconds: float) -> float:
    """Requests a second that `CALLERS` get who ask one after another."""
    turns = itertools.count()
    end_s = time.perf_counter() + seconds
    done = 0

    async def caller(send: Send) -> None:
        nonlocal done
        while time.perf_counter() < end_s:
            await send(load.requests[next(turns) % len(load.requests)], timeout=10.0)
            done += 1

    async with _channels(load.address) as sends, asyncio.TaskGroup() as tasks:
        for number in range(CALLERS):
            tasks.create_task(caller(sends[number % len(sends)]))
    return done / seconds


@contextlib.asynccontextmanager
async def _channels(address: str) -> AsyncIterator[list[Send]]:
    """Bytes to bytes: what packing and unpacking cost is the asker's, and not measured here."""
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            (await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))).unary_unary(METHOD)
            for _ in range(CHANNELS)
        ]


class Growth:
    """Resident memory of a cluster's processes over time, less the pages of mapped files."""

    def __init__(self, fleet: LocalCluster) -> None:
        self._processes = {name: psutil.Process(child.pid) for name, child in fleet.processes.items() if child.pid}
        self.samples: list[dict[str, int]] = []

    async def sample(self, every_s: float) -> None:
        """Takes samples until it is cancelled."""
        while True:
            self.samples.append({name: self._bytes(process) for name, process in self._processes.items()})
            await asyncio.sleep(every_s)

    def shares(self) -> dict[str, float]:
        """By process, the last sample over that at the end of the first third, less one."""
        early, last = self.samples[len(self.samples) // 3], self.samples[-1]
        return {name: last[name] / early[name] - 1 for name in last}

    @staticmethod
    def _bytes(process: psutil.Process) -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)


def requests(vectors: datasets.Floats, size: int, count: int = 64) -> list[bytes]:
    """Serialised searches of `size` queries each; only a full answer counts."""
    rng = np.random.default_rng(1)
    return [
        search_service_pb2.SearchRequest(
            collection=COLLECTION,
            queries=[
                search_service_pb2.Query(vector=vectors[row].tobytes()) for row in rng.integers(len(vectors), size=size)
            ],
            k=10,
            min_coverage=1.0,
            packed=True,
        ).SerializeToString()
        for _ in range(count)
    ]


def measure(fleet: LocalCluster, load: Load, seconds: float, record: records.Record) -> bool:
    """Looks for the peak, offers five times that, and prints what became of it; returns whether the bars were met."""
    rate = asyncio.run(closed(load, seconds)) / STEP
    steps: list[Offered] = []
    while len(steps) < STEPS_MAX and (not steps or steps[-1].goodput > 0.9 * steps[-1].due_s):
        steps.append(asyncio.run(offer(load, rate, seconds, seed=1)))
        rate *= STEP
    peak = max(step.goodput for step in steps)
    growth = Growth(fleet)

    async def overload() -> Offered:
        sampling = asyncio.create_task(growth.sample(0.5))
        offered = await offer(load, FACTOR * peak, 4 * seconds, seed=2)
        sampling.cancel()
        return offered

    over = asyncio.run(overload())
    after = asyncio.run(offer(load, 0.5 * peak, seconds, seed=3))
    named = [(f"step {number}", step) for number, step in enumerate(steps, 1)]
    named += [(f"{FACTOR:g} × peak", over), ("half of the peak, afterwards", after)]
    print(records.table(f"Overload: deadline {load.deadline_s:g} s", [_row(name, one) for name, one in named]))
    rows = [
        {
            "process": name,
            **{f"{at:.0%}": f"{_at(growth.samples, at)[name] / 2**20:,.0f} MiB" for at in (0, 0.33, 0.67, 1)},
            "growth": f"{share:+.1%}",
        }
        for name, share in growth.shares().items()
    ]
    print(records.table("Resident memory during the overload, less mapped files", rows))
    share = over.goodput / peak
    refused_only = set(over.outcomes) <= {OK, LATE, "OVERLOADED"}
    for name, one in named:
        record.add(
            "overload", step=name, deadline_s=load.deadline_s, offered_s=one.due_s, goodput_s=one.goodput,
            outcomes=dict(one.outcomes), answered_ms=_percentiles(one.answered_s), refused_ms=_percentiles(one.refused_s),
        )  # fmt: skip
    record.add("overload", step="whole", peak_s=peak, share=share, growth=growth.shares())
    flat = max(growth.shares().values()) <= GROWTH_SHARE_MAX
    print(f"goodput at {FACTOR:g} × peak ÷ peak: {share:.2f} (at least {GOODPUT_SHARE_MIN:g})")
    print(f"everything not answered was refused as OVERLOADED: {'yes' if refused_only else dict(over.outcomes)}")
    return share >= GOODPUT_SHARE_MIN and flat


def _at(samples: Sequence[dict[str, int]], share: float) -> dict[str, int]:
    return samples[round(share * (len(samples) - 1))]


def _percentiles(taken_s: Sequence[float]) -> list[float]:
    return [round(float(value) * 1e3, 1) for value in np.percentile(taken_s, (50, 95, 99))] if taken_s else []


def _row(name: str, one: Offered) -> dict[str, str]:
    other = sum(one.outcomes.values()) - one.outcomes[OK] - len(one.refused_s)

    def shown(taken_s: Sequence[float]) -> str:
        return " / ".join(f"{value:.0f}" for value in _percentiles(taken_s)) or "-"

    return {
        "offered": name,
        "requests/s": f"{one.due_s:,.0f}",
        "goodput/s": f"{one.goodput:,.0f}",
        "p50/p95/p99 ms": shown(one.answered_s),
        "refused": f"{len(one.refused_s):,}",
        "refused after ms": shown(one.refused_s),
        "otherwise lost": f"{other:,}",
    }


def main() -> None:
    """Reads the command line, starts a cluster and measures."""
    parser = argparse.ArgumentParser(description="Offer a cluster five times what it can answer.")
    parser.add_argument("--points", type=int, default=100_000, help="points stored (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="their dimension (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="queries a request (default: %(default)s)")
    parser.add_argument("--deadline-s", type=float, default=1.0, help="of each request (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each step; the overload has four times that")
    parser.add_argument(
        "--out", type=Path, default=records.ROOT / "loadtest" / "results" / "local.jsonl", help="file of figures"
    )
    arguments = parser.parse_args()
    drawn = datasets.synthetic(arguments.points, arguments.dim)
    with tempfile.TemporaryDirectory(prefix="vectorfleet-overload-") as data, local_cluster(Path(data)) as fleet:
        with vectorfleet.Client(fleet.address, timeout=60.0) as client:
            client.create_collection(COLLECTION, dim=arguments.dim, metric="l2", shards=2)
            loading.load_vectors(client, COLLECTION, drawn.base)
            loading.settle(client, COLLECTION)
        load = Load(fleet.address, requests(drawn.queries, arguments.size), arguments.deadline_s)
        met = measure(fleet, load, arguments.seconds, records.Record(arguments.out))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
