"""`make overload`: what a cluster does when five times more is asked of it than it can answer.

Open loop: requests come due at random moments of a given rate, whether others were answered or not. *Goodput* is the answers that
came within the deadline, from all shards. First the rate at which goodput is highest is looked for, then five times that
goodput is offered, once by each kind of sender. What it must show, of each: goodput stays at 80 % of the peak at least, what is
refused is refused soon and says `RESOURCE_EXHAUSTED`, no process grows, and afterwards all is as before.

A request carries several queries (`--size`), so that it costs the cluster far more than it costs this process, which makes the
load. Where there are two cores or more this process has one for itself and the cluster all others (`--no-pin`: they share), so
that the cluster can do as much in the overload as it could at its peak. How late requests were *sent* is told, too: a sender
that cannot keep up offers less than it says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import grpc
import numpy as np
import psutil

import vectorfleet
from loadtest import datasets, loading, records
from loadtest.asking import arrivals
from loadtest.fleet import local_cluster
from loadtest.processes import cpu_s
from vectorfleet import errors
from vectorfleet.local import LocalCluster
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import search_service_pb2

Send: TypeAlias = Callable[[int, float], Awaitable[object]]
"""Sends the request of this number, which may take so many seconds."""
Sender = Literal["few", "many", "client"]
"""Bare gRPC stubs on few connections, or on many; `AsyncClient`, which holds back what would be refused."""
SENDERS: Final[tuple[Sender, ...]] = get_args(Sender)
COLLECTION: Final = "overload"
METHOD: Final = "/vectorfleet.v1.SearchService/Search"
CHANNELS: Final = {"few": 4, "many": 128}
TOLD: Final = {
    "few": f"stubs, {CHANNELS['few']} connections",
    "many": f"stubs, {CHANNELS['many']} connections",
    "client": "AsyncClient",
}
REQUESTS: Final = 64
"""Different ones."""
CALLERS: Final = 8
"""Of the closed loop that finds roughly what the cluster can do."""
CLOSED_TIMEOUT_S: Final = 10.0
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
    late_s: list[float] = field(default_factory=list)
    """Seconds from the moment at which each request was due to that at which it was sent."""

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
    vectors: datasets.Floats
    """float32[requests, queries of each, dim]."""
    deadline_s: float

    @contextlib.asynccontextmanager
    async def sends(self, sender: Sender) -> AsyncIterator[list[Send]]:
        """Ways to send a request, one a connection."""
        async with contextlib.AsyncExitStack() as stack:
            if sender == "client":
                client = await stack.enter_async_context(vectorfleet.AsyncClient(self.address))
                yield [partial(self._search, client)]
                return
            # Bytes to bytes: what packing and unpacking cost is the asker's, and not measured here.
            requests = [self._packed(vectors) for vectors in self.vectors]
            options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(self.address, options=options))
                for _ in range(CHANNELS[sender])
            ]
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            yield [partial(self._call, channel.unary_unary(METHOD), requests) for channel in channels]

    def _search(self, client: vectorfleet.AsyncClient, number: int, timeout_s: float) -> Awaitable[object]:
        vectors = self.vectors[number % len(self.vectors)]
        return client.search(COLLECTION, vectors=vectors, k=10, min_coverage=1.0, timeout=timeout_s)

    @staticmethod
    def _call(method: Any, requests: Sequence[bytes], number: int, timeout_s: float) -> Awaitable[object]:
        call: Awaitable[object] = method(requests[number % len(requests)], timeout=timeout_s)
        return call

    @staticmethod
    def _packed(vectors: datasets.Floats) -> bytes:
        return search_service_pb2.SearchRequest(
            collection=COLLECTION,
            queries=[search_service_pb2.Query(vector=vector.tobytes()) for vector in vectors],
            k=10,
            min_coverage=1.0,
            packed=True,
        ).SerializeToString()


async def offer(load: Load, sender: Sender, a_second: float, seconds: float, seed: int) -> Offered:
    """Sends requests as they come due, whatever became of those before."""
    offered = Offered(seconds)

    async def call(send: Send, number: int, due_s: float) -> None:
        offered.late_s.append(time.perf_counter() - due_s)
        try:
            await send(number, load.deadline_s)
        except (grpc.aio.AioRpcError, vectorfleet.VectorfleetError) as error:
            failure = error if isinstance(error, vectorfleet.VectorfleetError) else errors.from_rpc_error(error)
            offered.outcomes[failure.reason] += 1
            if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                offered.refused_s.append(time.perf_counter() - due_s)
            return
        taken_s = time.perf_counter() - due_s
        if taken_s > load.deadline_s:
            offered.outcomes[LATE] += 1
        else:
            offered.outcomes[OK] += 1
            offered.answered_s.append(taken_s)

    async with load.sends(sender) as sends, asyncio.TaskGroup() as tasks:
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
            await send(next(turns), CLOSED_TIMEOUT_S)
            done += 1

    async with load.sends("few") as sends, asyncio.TaskGroup() as tasks:
        for number in range(CALLERS):
            tasks.create_task(caller(sends[number % len(sends)]))
    return done / seconds


class Growth:
    """Resident memory of a cluster's processes over time, less the pages of mapped files."""

    def __init__(self, fleet: LocalCluster) -> None:
        self._processes = {name: psutil.Process(child.pid) for name, child in fleet.processes.items() if child.pid}
        self.samples: list[dict[str, int]] = []
        self.cpu_shares: dict[str, float] = {}
        """Of one core, what each process has had."""

    async def sample(self, every_s: float) -> None:
        """Takes samples until it is cancelled."""
        begin_s = time.perf_counter()
        begin_cpu_s = {name: cpu_s(process) for name, process in self._processes.items()}
        while True:
            self.samples.append({name: self._bytes(process) for name, process in self._processes.items()})
            spent_s = max(time.perf_counter() - begin_s, 1e-3)
            for name, process in self._processes.items():
                self.cpu_shares[name] = (cpu_s(process) - begin_cpu_s[name]) / spent_s
            await asyncio.sleep(every_s)

    def shares(self) -> dict[str, float]:
        """By process, the last sample over that at the end of the first third, less one."""
        early, last = self.samples[len(self.samples) // 3], self.samples[-1]
        return {name: last[name] / early[name] - 1 for name in last}

    @staticmethod
    def _bytes(process: psutil.Process) -> int:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)


def peak_of(load: Load, seconds: float, record: records.Record) -> float:
    """Looks for the rate with the highest goodput, and returns that goodput: requests a second."""
    rate = asyncio.run(closed(load, seconds)) / STEP
    steps: list[Offered] = []
    while len(steps) < STEPS_MAX and (not steps or steps[-1].goodput > 0.9 * steps[-1].due_s):
        steps.append(asyncio.run(offer(load, "few", rate, seconds, seed=1)))
        rate *= STEP
    named = [(f"step {number}", step) for number, step in enumerate(steps, 1)]
    print(records.table(f"Peak: deadline {load.deadline_s:g} s", [_row(name, one) for name, one in named]), flush=True)
    for name, one in named:
        _note(record, name, load, one)
    return max(step.goodput for step in steps)


def suffer(
    fleet: LocalCluster, load: Load, sender: Sender, peak: float, seconds: float, after_s: float, record: records.Record
) -> bool:
    """Offers five times the peak, prints what became of it, and returns whether the bars were met."""
    growth = Growth(fleet)

    async def overload() -> Offered:
        sampling = asyncio.create_task(growth.sample(0.5))
        offered = await offer(load, sender, FACTOR * peak, seconds, seed=2)
        sampling.cancel()
        return offered

    over = asyncio.run(overload())
    after = asyncio.run(offer(load, sender, 0.5 * peak, after_s, seed=3))
    named = [(f"{FACTOR:g} × peak", over), ("half of the peak, afterwards", after)]
    print(records.table(f"Overload by {TOLD[sender]}", [_row(name, one) for name, one in named]))
    rows = [
        {
            "process": name,
            **{f"{at:.0%}": f"{_at(growth.samples, at)[name] / 2**20:,.0f} MiB" for at in (0, 0.33, 0.67, 1)},
            "growth": f"{share:+.1%}",
            "CPU": f"{growth.cpu_shares[name]:.0%}",
        }
        for name, share in growth.shares().items()
    ]
    print(records.table("Resident memory during the overload, less mapped files", rows))
    for name, one in named:
        _note(record, f"{TOLD[sender]}: {name}", load, one)
    share, grown = over.goodput / peak, max(growth.shares().values())
    met = share >= GOODPUT_SHARE_MIN and grown <= GROWTH_SHARE_MAX
    others = {reason: times for reason, times in over.outcomes.items() if reason not in (OK, "OVERLOADED")}
    record.add("overload", step=f"{TOLD[sender]}: whole", peak_s=peak, share=share, growth=growth.shares())
    print(f"{TOLD[sender]}: goodput ÷ peak {share:.2f} (at least {GOODPUT_SHARE_MIN:g}), largest growth {grown:+.1%} "
          f"(at most {GROWTH_SHARE_MAX:.0%}), neither answered in time nor OVERLOADED: {others or 'none'}: "
          f"{'met' if met else 'MISSED'}\n", flush=True)  # fmt: skip
    return met


def _note(record: records.Record, name: str, load: Load, one: Offered) -> None:
    record.add(
        "overload", step=name, deadline_s=load.deadline_s, offered_s=one.due_s, goodput_s=one.goodput,
        outcomes=dict(one.outcomes), answered_ms=_percentiles(one.answered_s), refused_ms=_percentiles(one.refused_s),
        sent_late_ms=_percentiles(one.late_s),
    )  # fmt: skip


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
        "sent late by p50/p95/p99 ms": shown(one.late_s),
    }


def main() -> None:
    """Reads the command line, starts a cluster and measures."""
    parser = argparse.ArgumentParser(description="Offer a cluster five times what it can answer.")
    parser.add_argument("--points", type=int, default=100_000, help="points stored (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="their dimension (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="queries a request (default: %(default)s)")
    parser.add_argument("--deadline-s", type=float, default=1.0, help="of each request (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each step (default: %(default)s)")
    parser.add_argument("--overload-seconds", type=float, default=20.0, help="of each overload (default: %(default)s)")
    parser.add_argument("--sender", choices=SENDERS, action="append", help="one kind of sender; default: each in turn")
    parser.add_argument("--no-pin", action="store_true", help="let the sender share the cluster's cores")
    parser.add_argument(
        "--out", type=Path, default=records.ROOT / "loadtest" / "results" / "local.jsonl", help="file of figures"
    )
    arguments = parser.parse_args()
    record = records.Record(arguments.out)
    drawn = datasets.synthetic(arguments.points, arguments.dim)
    rows = np.random.default_rng(1).integers(len(drawn.queries), size=(REQUESTS, arguments.size))
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="vectorfleet-overload-"))
        with _cores_of_its_own(pin=not arguments.no_pin):
            fleet = stack.enter_context(local_cluster(Path(data)))
        with vectorfleet.Client(fleet.address, timeout=60.0) as client:
            client.create_collection(COLLECTION, dim=arguments.dim, metric="l2", shards=2)
            loading.load_vectors(client, COLLECTION, drawn.base)
            loading.settle(client, COLLECTION)
        load = Load(fleet.address, drawn.queries[rows], arguments.deadline_s)
        peak = peak_of(load, arguments.seconds, record)
        met = [
            suffer(fleet, load, sender, peak, arguments.overload_seconds, arguments.seconds, record)
            for sender in arguments.sender or SENDERS
        ]
    sys.exit(0 if all(met) else 1)


@contextlib.contextmanager
def _cores_of_its_own(*, pin: bool) -> Iterator[None]:
    """Starts processes on all cores but one, which this process keeps afterwards; they share where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    pinned = pin and len(cores) > 1
    if pinned:
        os.sched_setaffinity(0, cores[1:])
    yield
    if pinned:
        os.sched_setaffinity(0, cores[:1])
    print(f"{len(cores)} cores, of which the cluster has {len(cores[1:]) if pinned else 'all, and the sender, too'}\n")


if __name__ == "__main__":
    main()
