"""Callers that each ask their next query when their last was answered: a closed loop, as tasks or as threads.

It knows no system: what is asked is a function from queries to rows. numpy is all that it needs, since the workers of
`loadtest.peers` run it in environments of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from loadtest.latency import Latencies

Floats: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]
Ask: TypeAlias = Callable[[Floats], Awaitable[Rows]]
"""float32 (queries, dim) → the answered rows, int64 (queries, k), below 0 where an answer has fewer."""
AskBlocking: TypeAlias = Callable[[Floats], Rows]
"""The same, for callers that are threads."""


@dataclass(frozen=True)
class Load:
    """So many callers, so many queries a call, for so long."""

    callers: int
    size: int
    seconds: float
    warm_up_s: float = 1.0
    """Asked before, and not counted."""


@dataclass
class Asked:
    """What was measured."""

    latencies: Latencies
    rows: dict[int, Rows] = field(repr=False)
    """Query → int64 (k,), of every query that was answered."""


class _Tally:
    """Which queries come next, and what came of them."""

    def __init__(self, load: Load, queries: Floats) -> None:
        self._load = load
        self._queries = queries
        self._turns = itertools.count()
        self._taken: list[float] = []
        self._rows: dict[int, Rows] = {}
        self._begin_s = time.perf_counter() + load.warm_up_s
        self._end_s = self._begin_s + load.seconds

    def more(self) -> bool:
        return time.perf_counter() < self._end_s

    def next(self) -> tuple[int, Floats]:
        size = self._load.size
        first = next(self._turns) * size % (len(self._queries) - size + 1)
        return first, self._queries[first : first + size]

    def add(self, start_s: float, first: int, found: Rows) -> None:
        if start_s >= self._begin_s:
            self._taken.append(time.perf_counter() - start_s)
            for at in range(self._load.size):
                self._rows.setdefault(first + at, found[at])

    def summed(self) -> Asked:
        if not self._taken:
            raise TimeoutError(f"no call that began within {self._load.seconds:g} s was answered")
        whole_s = time.perf_counter() - self._begin_s
        return Asked(Latencies.of(self._taken, whole_s, self._load.size), self._rows)


class Watch:
    """Told when the callers, all connected, begin to ask, and when they have ended, still connected. This one does nothing."""

    def begin(self) -> None:
        """Called once."""

    def end(self) -> None:
        """Called once, unless the callers failed."""


async def tasks(ask: Ask, queries: Floats, load: Load, watch: Watch | None = None) -> Asked:
    """Lets tasks of this event loop ask."""
    watch = watch or Watch()
    watch.begin()
    tally = _Tally(load, queries)

    async def call() -> None:
        while tally.more():
            first, asked = tally.next()
            start_s = time.perf_counter()
            tally.add(start_s, first, await ask(asked))

    async with asyncio.TaskGroup() as group:
        for _ in range(load.callers):
            group.create_task(call())
    watch.end()
    return tally.summed()


def threads(
    connect: Callable[[], AbstractContextManager[AskBlocking]], queries: Floats, load: Load, watch: Watch
) -> Asked:
    """Lets threads ask, each through a connection of its own; time counts from when all are connected."""
    tally: list[_Tally] = []

    def start() -> None:
        watch.begin()
        tally.append(_Tally(load, queries))

    connected = threading.Barrier(load.callers, action=start)
    done = threading.Barrier(load.callers, action=watch.end)

    def call() -> None:
        try:
            with connect() as ask:
                connected.wait()
                while tally[0].more():
                    first, asked = tally[0].next()
                    start_s = time.perf_counter()
                    tally[0].add(start_s, first, ask(asked))
                done.wait()
        except threading.BrokenBarrierError:
            return  # another caller failed, and says why
        except BaseException:
            connected.abort()
            done.abort()
            raise

    with ThreadPoolExecutor(load.callers) as pool:
        calls = [pool.submit(call) for _ in range(load.callers)]
    for one in calls:
        one.result()
    return tally[0].summed()
