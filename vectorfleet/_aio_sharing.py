"""Concurrent searches of one `AsyncClient` share calls, without a timer: alone when idle, together when busy (`batching`).

A search that finds its lane idle is a plain call of the task that makes it. Only those that find others under way wait for a
share in a call, which a task of its own makes for all of them: it must outlive any one of those who wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vectorfleet import _answers as answers
from vectorfleet import _codec as codec
from vectorfleet import _shared_call as shared_call
from vectorfleet import _tracing as tracing
from vectorfleet import errors, limits
from vectorfleet._attempts import client_closed
from vectorfleet._models import SearchResult
from vectorfleet.lanes import Lanes
from vectorfleet.v1 import search_service_pb2

_Call: TypeAlias = codec.Call[search_service_pb2.SearchRequest]
_Outcome: TypeAlias = SearchResult | Exception | None
"""None: go on alone."""


@dataclass(slots=True, eq=False)
class _Shared:
    """A call that is under way for several searches."""

    task: asyncio.Task[None] | None
    waiting: int

    def gone(self) -> None:
        """One does not wait any more; with the last of them the call ends."""
        self.waiting -= 1
        if not self.waiting and self.task is not None:
            self.task.cancel()  # no effect once it has settled them all


@dataclass(slots=True, eq=False)
class _Waiting:
    plan: codec.Search
    deadline_s: float
    share: asyncio.Future[SearchResult | None]
    """None: go on alone."""
    span: tracing.CallSpan | None
    call: _Shared | None = None


class AioSharing:
    """The lanes of one client; belongs to one event loop."""

    def __init__(
        self,
        ask: Callable[[_Call, float], Awaitable[search_service_pb2.SearchResponse]],
        ask_each: Callable[[Iterable[_Call], int, float], Awaitable[list[search_service_pb2.SearchResponse]]],
    ) -> None:
        """Takes the ways to ask, which try again where there is use in it.

        Args:
            ask: (call, seconds).
            ask_each: (calls, how many at once, seconds).
        """
        self._ask = ask
        self._ask_each = ask_each
        self._lanes: Lanes[shared_call.Lane, _Waiting] = Lanes(
            lambda lane, batch: asyncio.create_task(self._carry(batch)),
            in_flight_max=shared_call.CALLS_IN_FLIGHT,
            weight_max=limits.QUERIES_MAX,
            gathering=True,
        )

    async def search(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        """Answers a search, in a call of its own or in one that it shares. Raises what `alone` does."""
        with tracing.searching() as span:
            if plan.lane is None:
                return await self._alone(plan, timeout_s)
            lane = plan.lane, timeout_s
            place = self._lanes.enter(lane)
            if place is not None:
                try:
                    return await self._alone(plan, timeout_s)
                finally:
                    self._lanes.leave(place)
            share: asyncio.Future[SearchResult | None] = asyncio.get_running_loop().create_future()
            waiting = _Waiting(plan, time.monotonic() + timeout_s, share, span)
            self._lanes.put(lane, waiting)
            try:
                result = await share
            except asyncio.CancelledError:
                if waiting.call is not None:
                    waiting.call.gone()
                raise
            return result or await self._alone(plan, shared_call.time_left_s(waiting.deadline_s, time.monotonic()))

    async def close(self) -> None:
        """Ends all searches that wait for a share: `CLIENT_CLOSED`. Those that are alone end with the channel."""
        for waiting in await self._lanes.close():
            _settle(waiting, client_closed())

    async def _alone(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        call = plan.call()
        if call is not None:
            return answers.search_result([await self._ask(call, timeout_s)], plan.k)
        responses = await self._ask_each(plan.calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout_s)
        return answers.search_result(responses, plan.k)

    async def _carry(self, batch: list[_Waiting]) -> None:
        here = [waiting for waiting in batch if not waiting.share.done()]
        if not here:
            return
        call = _Shared(asyncio.current_task(), len(here))
        for waiting in here:
            waiting.call = call
        outcomes: Sequence[_Outcome] = ()
        try:
            outcomes = await self._together(here)
        except Exception as error:
            final = len(here) == 1 or (isinstance(error, errors.VectorfleetError) and shared_call.concerns_all(error))
            outcomes = [error if final else None] * len(here)
        finally:
            # A turn later: as this task ends the lane makes room, so that whoever comes back to an idle one is alone again.
            outcomes = outcomes or [client_closed()] * len(here)  # the call was cancelled
            asyncio.get_running_loop().call_soon(_hand_out, here, outcomes)

    async def _together(self, here: Sequence[_Waiting]) -> Sequence[SearchResult]:
        left_s = shared_call.time_left_s(min([waiting.deadline_s for waiting in here]), time.monotonic())
        with tracing.sharing([waiting.span for waiting in here]):
            if len(here) == 1:
                return [await self._alone(here[0].plan, left_s)]
            plans = [waiting.plan for waiting in here]
            response = await self._ask(shared_call.join(plans), left_s)
        return shared_call.divide(response, plans)


def _hand_out(here: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
    for waiting, outcome in zip(here, outcomes, strict=True):
        _settle(waiting, outcome)


def _settle(waiting: _Waiting, outcome: _Outcome) -> None:
    if waiting.share.done():
        return
    if isinstance(outcome, Exception):
        waiting.share.set_exception(outcome)
    else:
        waiting.share.set_result(outcome)
