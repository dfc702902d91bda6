"""Bounded thread pools: where the engine's blocking calls run, off the event loop.

Calls wait on the loop's side, so that one whose caller has gone or whose time is up leaves at once and never starts.
Only as many as there are threads are handed over ahead: a thread that finishes then finds its next work without waiting
for a busy event loop. Invariant: at most `waiting_max` calls wait; the next is refused with OVERLOADED, and so is one that
would begin too late for its deadline (`punctuality`).

OpenMP counts threads per *calling* thread; the environment (OMP_NUM_THREADS=1, set before numpy and FAISS are imported)
is what holds it at one in all of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from vectorfleet.errors import DeadlineExceeded, ResourceExhausted
from vectorfleet.punctuality import Punctuality

P = ParamSpec("P")
T = TypeVar("T")


class WorkPool:
    """Threads of one purpose. Used from one event loop."""

    def __init__(self, name: str, *, threads: int, waiting_max: int, nice: int = 0) -> None:
        """Makes the pool; threads start when needed.

        Args:
            name: for messages and thread names.
            threads: calls that run at once.
            waiting_max: calls that may wait for one.
            nice: added to the threads' niceness, so that background work yields to searches.
        """
        self.name = name
        self._executor = ThreadPoolExecutor(threads, name, initializer=_lower_priority, initargs=(nice,))
        self._slots = asyncio.Semaphore(2 * threads)
        self._waiting = 0
        self._waiting_max = waiting_max
        self._submitted: set[Future[Any]] = set()
        self._punctuality = Punctuality()

    @property
    def idle(self) -> bool:
        """Whether no thread works."""
        return not any(future.running() for future in self._submitted.copy())

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._waiting

    @property
    def running(self) -> int:
        """Calls that a thread works on, or will as soon as it is free: at most twice as many as there are threads."""
        return len(self._submitted)

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work` in a thread; without a deadline of its own."""
        return await self.run_until(None, work, *args, **kwargs)

    async def run_until(self, deadline: float | None, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work` in a thread, unless the time is up before it starts.

        Args:
            deadline: of `time.monotonic()`; None: none.
            work: called with the rest. Once started it runs to its end, whoever has gone: what may take long looks at the
                time itself.

        Raises:
            ResourceExhausted: too many calls wait, or so many that this one would be late.
            DeadlineExceeded: it could not start in time.
        """
        self._punctuality.enter(1)
        try:
            await self._take_slot(deadline)
            started_s = time.monotonic()
            loop = asyncio.get_running_loop()
            try:
                future = self._executor.submit(_call_in_time, deadline, lambda: work(*args, **kwargs))
            except BaseException:
                self._slots.release()
                raise
            self._submitted.add(future)
            future.add_done_callback(self._submitted.discard)
            future.add_done_callback(lambda _: _tell(loop, self._slots.release))
            result = await asyncio.wrap_future(future)
            self._punctuality.came_back(started_s, 1, time.monotonic())
            return result
        finally:
            self._punctuality.leave(1)

    async def _take_slot(self, deadline: float | None) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # at once, without the cost of a timer
            return
        if self._waiting >= self._waiting_max:
            raise ResourceExhausted(f"{self._waiting} calls wait for {self.name} threads already")
        now_s = time.monotonic()
        if deadline is not None and not self._punctuality.admits(0, deadline - now_s, now_s):
            raise ResourceExhausted(
                f"{self._waiting} calls wait for {self.name} threads, and one more would be late: it would end in about "
                f"{self._punctuality.expected_s(0):.2g} s, and has {deadline - now_s:.2g} s"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await self._slots.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed before a {self.name} thread was free") from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Refuses new work and drops what has not started; does not wait for what runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Gate:
    """Lets many threads use a thing until it is shut, and tells the shutter when the last has left."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._shut = False

    def enter(self) -> bool:
        """Counts one user in; False where the gate is shut."""
        with self._condition:
            if self._shut:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """Counts one user out."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def shut(self, timeout_s: float) -> bool:
        """Admits nobody any more and waits until all have left; False where some are still inside after `timeout_s`."""
        with self._condition:
            self._shut = True
            return self._condition.wait_for(lambda: self._inside == 0, timeout_s)


def _call_in_time(deadline: float | None, work: Callable[[], T]) -> T:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed before the work began")
    return work()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, nobody waits
        loop.call_soon_threadsafe(callback)


def _lower_priority(nice: int) -> None:
    if nice:  # Linux keeps niceness per thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
