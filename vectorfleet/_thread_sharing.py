"""Searches of several threads through one `Client` share calls, as those of tasks do in `_aio_sharing`. No thread of ours.

A search that finds its lane idle is a plain call of its thread. Of the threads whose searches wait and leave together one makes
the call for all; it is chosen as the call before comes back. A thread sleeps on a lock of its own, which is let go either because
its search is settled or because it is its turn to look for work. So a signal may come twice or in vain: whoever wakes looks at
the lane again. A thread that dies before it takes its turn costs the others no more than `batching.PATIENCE_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from vectorfleet import _answers as answers
from vectorfleet import _codec as codec
from vectorfleet import _shared_call as shared_call
from vectorfleet import _tracing as tracing
from vectorfleet import errors, limits
from vectorfleet._models import SearchResult
from vectorfleet.batching import Lane
from vectorfleet.v1 import search_service_pb2

_Call: TypeAlias = codec.Call[search_service_pb2.SearchRequest]


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class _Waiting:
    plan: codec.Search
    deadline_s: float
    span: tracing.CallSpan | None
    settled: bool = False
    outcome: SearchResult | errors.VectorfleetError | None = None
    """Once settled: None: go on alone."""
    signal: threading.Lock = field(default_factory=_locked)


class ThreadSharing:
    """The lanes of one client."""

    def __init__(
        self,
        ask: Callable[[_Call, float], search_service_pb2.SearchResponse],
        ask_each: Callable[[Iterable[_Call], int, float], Iterable[search_service_pb2.SearchResponse]],
    ) -> None:
        """Takes the ways to ask, which try again where there is use in it.

        Args:
            ask: (call, seconds).
            ask_each: (calls, how many at once, seconds).
        """
        self._ask = ask
        self._ask_each = ask_each
        self._lanes: dict[shared_call.Lane, Lane[_Waiting]] = {}
        self._lock = threading.Lock()

    def search(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        """Answers a search, in a call of its own or in one that it shares. Raises what `alone` does."""
        with tracing.searching() as span:
            return (
                self._alone(plan, timeout_s) if plan.lane is None else self._together(plan, timeout_s, plan.lane, span)
            )

    def _together(
        self, plan: codec.Search, timeout_s: float, like: tuple[bytes, int], span: tracing.CallSpan | None
    ) -> SearchResult:
        key = like, timeout_s
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = Lane(shared_call.CALLS_IN_FLIGHT, limits.QUERIES_MAX, limits.QUERIES_MAX)
                number, mine = lane.leave(time.monotonic()), None
            else:
                mine = _Waiting(plan, time.monotonic() + timeout_s, span)
                lane.put(mine, 1)
        if mine is None:
            try:
                return self._alone(plan, timeout_s)
            finally:
                with self._lock:
                    self._finished(key, lane, number)
        try:
            self._wait(key, lane, mine)
        finally:
            mine.settled = True  # an interrupted thread's search leaves with nobody
        if isinstance(mine.outcome, errors.VectorfleetError):
            raise mine.outcome
        return mine.outcome or self._alone(plan, shared_call.time_left_s(mine.deadline_s, time.monotonic()))

    def _alone(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        call = plan.call()
        if call is not None:
            return answers.search_result([self._ask(call, timeout_s)], plan.k)
        return answers.search_result(list(self._ask_each(plan.calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout_s)), plan.k)

    def _wait(self, key: shared_call.Lane, lane: Lane[_Waiting], mine: _Waiting) -> None:
        """Returns when `mine` is settled, or its time is up; carries what may leave meanwhile."""
        while not mine.settled and (now_s := time.monotonic()) < mine.deadline_s:
            with self._lock:
                taken = lane.take(now_s)
                wake_s = lane.wake_s(now_s)
            if taken is not None:
                self._carry(key, lane, *taken)
            else:
                until_s = mine.deadline_s if wake_s is None else min(wake_s, mine.deadline_s)
                mine.signal.acquire(timeout=max(0.0, until_s - now_s))

    def _carry(self, key: shared_call.Lane, lane: Lane[_Waiting], number: int, batch: list[_Waiting]) -> None:
        here = [waiting for waiting in batch if not waiting.settled]
        try:
            if here:
                self._settle(here)
        finally:
            with self._lock:
                self._finished(key, lane, number)
                for waiting in here:
                    waiting.settled = True
                    _wake(waiting)

    def _finished(self, key: shared_call.Lane, lane: Lane[_Waiting], number: int) -> None:
        """Makes room for what waits. The lock is held."""
        lane.finished(number)
        if lane.idle:
            self._lanes.pop(key, None)
        elif lane.queue:
            _wake(lane.queue[0][0])

    def _settle(self, here: list[_Waiting]) -> None:
        """Makes the call, and gives each its outcome."""
        plans = [waiting.plan for waiting in here]
        try:
            left_s = shared_call.time_left_s(min(waiting.deadline_s for waiting in here), time.monotonic())
            with tracing.sharing([waiting.span for waiting in here]):
                if len(here) == 1:
                    here[0].outcome = self._alone(plans[0], left_s)
                    return
                response = self._ask(shared_call.join(plans), left_s)
            for waiting, result in zip(here, shared_call.divide(response, plans), strict=True):
                waiting.outcome = result
        except errors.VectorfleetError as error:
            if len(here) == 1 or shared_call.concerns_all(error):
                for waiting in here:
                    waiting.outcome = error


def _wake(waiting: _Waiting) -> None:
    if waiting.signal.locked():
        waiting.signal.release()
