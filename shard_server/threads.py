"""Bounded thread pools: where the engine's blocking calls run, off the event loop.

Calls wait on the loop's side, so that one whose caller has gone or whose time is up leaves at once and never starts.
Only as many as there are threads are handed over ahead: a thread that finishes then finds its next work without waiting
for a busy event loop. Invariant: at most `waiting_max` calls wait; the next is refused with OVERLOADED, and so is one that
would begin too late for its deadline (`punctuality`).

A call goes to its thread through one queue and comes back through one wake-up of the loop: `concurrent.futures` does the same
with half a dozen locks and some sixty calls of Python, which is more than a small search needs for itself.

OpenMP counts threads per *calling* thread; the environment (OMP_NUM_THREADS=1, set before numpy and FAISS are imported)
is what holds it at one in all of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

from vectorfleet.errors import DeadlineExceeded, ResourceExhausted
from vectorfleet.punctuality import Punctuality

SHARE_MAX: Final = 2 / 3
"""Of the time that a call has, which those ahead of it may take. More than where its router admits it: a search that only
one of its nodes refuses is lost, and the work of the others with it."""

P = ParamSpec("P")
T = TypeVar("T")


class _Job:
    """A call on its way through a pool."""

    __slots__ = ("deadline", "future", "handed_s", "work")

    def __init__(self, work: Callable[[], Any], deadline: float | None, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.deadline = deadline
        self.future = future
        self.handed_s = 0.0
        """When it left the line for the threads; 0: it has not."""


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
        self._threads_max = threads
        self._waiting_max = waiting_max
        self._nice = nice
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._line: deque[_Job] = deque()
        """Jobs that wait to be handed over."""
        self._handed = 0
        """Jobs that were handed over and have neither come back nor been taken back."""
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._ahead: set[_Job] = set()
        """Jobs in the queue that have not started. Whoever removes one, a thread or the loop, decides what becomes of it."""
        self._punctuality = Punctuality(SHARE_MAX)

    @property
    def idle(self) -> bool:
        """Whether no thread works."""
        return self._handed == 0

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Calls that a thread works on, or will as soon as it is free: at most twice as many as there are threads."""
        return self._handed

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work` in a thread; without a deadline of its own."""
        return await self.run_until(None, work, *args, **kwargs)

    async def run_until(self, deadline: float | None, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work` in a thread, and waits for it until the time is up.

        Args:
            deadline: of `time.monotonic()`; None: none.
            work: called with the rest. Once started it runs to its end, whoever has gone: what may take long looks at the
                time itself.

        Raises:
            ResourceExhausted: too many calls wait, or so many that this one would be late.
            DeadlineExceeded: it could not start in time, or was not done in time.
        """
        loop = asyncio.get_running_loop()
        job = _Job(partial(work, *args, **kwargs), deadline, loop.create_future())
        self._punctuality.enter(1)
        timer: asyncio.TimerHandle | None = None
        try:
            if self._handed < 2 * self._threads_max:
                self._hand_over(job)
            else:
                self._require_punctual(deadline)
                self._line.append(job)
            if deadline is not None:
                timer = loop.call_at(deadline, self._give_up, job)
            result: T = await job.future
            self._punctuality.came_back(job.handed_s, 1, time.monotonic())
            return result
        except BaseException:
            self._take_back(job)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._punctuality.leave(1)

    def _require_punctual(self, deadline: float | None) -> None:
        """Refuses a call that would have to wait where too many do, or for too long."""
        if len(self._line) >= self._waiting_max:
            raise ResourceExhausted(f"{len(self._line)} calls wait for {self.name} threads already")
        now_s = time.monotonic()
        if deadline is not None and not self._punctuality.admits(0, deadline - now_s, now_s):
            raise ResourceExhausted(
                f"{len(self._line)} calls wait for {self.name} threads, and one more would be late: it would end in about "
                f"{self._punctuality.expected_s(0):.2g} s, and has {deadline - now_s:.2g} s"
            )

    def _hand_over(self, job: _Job) -> None:
        if self._closed:
            raise RuntimeError(f"the pool of {self.name} threads is closed")
        if len(self._threads) < min(self._handed + 1, self._threads_max):
            # A daemon: one that is deep in the engine does not hold up the end of the process, which asks `idle`.
            thread = threading.Thread(target=self._serve, name=f"{self.name}_{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads at present: those that there are do the work
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)
        self._handed += 1
        job.handed_s = time.monotonic()
        self._ahead.add(job)
        self._queue.put(job)

    def _serve(self) -> None:
        """What a thread does."""
        if self._nice:  # Linux keeps niceness per thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (job := self._queue.get()) is not None:
            try:
                self._ahead.remove(job)
            except KeyError:
                continue  # its caller has gone
            result: Any = None
            error: BaseException | None = None
            try:
                if job.deadline is not None and time.monotonic() >= job.deadline:
                    raise DeadlineExceeded("the deadline passed before the work began")
                result = job.work()
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, nobody waits
                job.future.get_loop().call_soon_threadsafe(self._came_back, job, result, error)
            del job, result, error  # not to be kept until the next one comes

    def _came_back(self, job: _Job, result: Any, error: BaseException | None) -> None:
        if job.future.done():
            pass  # nobody waits any more
        elif error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
        self._one_less()

    def _one_less(self) -> None:
        self._handed -= 1
        while self._line and self._handed < 2 * self._threads_max:
            job = self._line.popleft()
            if not job.future.done():
                self._hand_over(job)

    def _give_up(self, job: _Job) -> None:
        if not job.future.done():
            when = "during the work" if job.handed_s else f"before a {self.name} thread was free"
            job.future.set_exception(DeadlineExceeded(f"the deadline passed {when}"))

    def _take_back(self, job: _Job) -> None:
        """Sees to it that a job never starts, unless it has started."""
        if not job.handed_s:
            with contextlib.suppress(ValueError):
                self._line.remove(job)
        elif job in self._ahead:
            with contextlib.suppress(KeyError):  # a thread was faster
                self._ahead.remove(job)
                self._one_less()

    def close(self) -> None:
        """Refuses new work and drops what has not started; does not wait for what runs."""
        self._closed = True
        for job in (*self._line, *self._ahead.copy()):
            job.future.cancel()
            self._take_back(job)
        for _ in self._threads:
            self._queue.put(None)


class Gate:
    """Lets many threads use a thing until it is shut, and tells the shutter when the last has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Of all below; the condition's own."""
        self._left = threading.Condition(self._lock)
        self._inside = 0
        self._shut = False

    def enter(self) -> bool:
        """Counts one user in; False where the gate is shut."""
        with self._lock:
            if self._shut:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        """Counts one user out."""
        with self._lock:
            self._inside -= 1
            if self._shut:
                self._left.notify_all()

    def shut(self, timeout_s: float) -> bool:
        """Admits nobody any more and waits until all have left; False where some are still inside after `timeout_s`."""
        with self._lock:
            self._shut = True
            return self._left.wait_for(lambda: self._inside == 0, timeout_s)
