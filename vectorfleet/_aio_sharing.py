"""Concurrent searches of one `AsyncClient` share calls, without a timer: alone when idle, together when busy (`batching`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from vectorfleet import _answers as answers
from vectorfleet import _codec as codec
from vectorfleet import _shared_call as shared_call
from vectorfleet import _tracing as tracing
from vectorfleet import errors, limits
from vectorfleet._attempts import client_closed
from vectorfleet._models import SearchResult
from vectorfleet.lanes import Lanes
from vectorfleet.v1 import search_service_pb2


@dataclass(slots=True, eq=False)
class _Waiting:
    plan: codec.Search
    deadline_s: float
    share: asyncio.Future[SearchResult | None]
    """None: go on alone."""
    span: tracing.CallSpan | None


class AioSharing:
    """The lanes of one client; belongs to one event loop."""

    def __init__(
        self,
        ask: Callable[
            [Iterable[codec.Call[search_service_pb2.SearchRequest]], int, float],
            Awaitable[list[search_service_pb2.SearchResponse]],
        ],
    ) -> None:
        """Takes the way to ask: (calls, how many at once, seconds); tries again where there is use in it."""
        self._ask = ask
        self._lanes: Lanes[shared_call.Lane, _Waiting] = Lanes(
            lambda lane, batch: asyncio.create_task(self._carry(lane, batch)),
            in_flight_max=shared_call.CALLS_IN_FLIGHT,
            weight_max=limits.QUERIES_MAX,
        )

    async def search(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        """Answers a search, in a call of its own or in one that it shares. Raises what `alone` does."""
        with tracing.searching() as span:
            if plan.lane is None:
                return await self._alone(plan, timeout_s)
            share: asyncio.Future[SearchResult | None] = asyncio.get_running_loop().create_future()
            waiting = _Waiting(plan, time.monotonic() + timeout_s, share, span)
            self._lanes.put((plan.lane, timeout_s), waiting)
            result = await share
            return result or await self._alone(plan, shared_call.time_left_s(waiting.deadline_s, time.monotonic()))

    async def close(self) -> None:
        """Ends all searches that wait or are under way: `CLIENT_CLOSED`."""
        for waiting in await self._lanes.close():
            _settle(waiting, client_closed())

    async def _alone(self, plan: codec.Search, timeout_s: float) -> SearchResult:
        responses = await self._ask(plan.calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout_s)
        return answers.search_result(responses, plan.k)

    async def _carry(self, lane: shared_call.Lane, batch: list[_Waiting]) -> None:
        here = [waiting for waiting in batch if not waiting.share.done()]
        if not here:
            return
        _cancel_with_the_last(here)
        try:
            left_s = shared_call.time_left_s(min(waiting.deadline_s for waiting in here), time.monotonic())
            with tracing.sharing([waiting.span for waiting in here]):
                if len(here) == 1:
                    _settle(here[0], await self._alone(here[0].plan, left_s))
                    return
                plans = [waiting.plan for waiting in here]
                (response,) = await self._ask([shared_call.join(plans)], 1, left_s)
            for waiting, result in zip(here, shared_call.divide(response, plans), strict=True):
                _settle(waiting, result)
        except Exception as error:
            final = len(here) == 1 or (isinstance(error, errors.VectorfleetError) and shared_call.concerns_all(error))
            for waiting in here:
                _settle(waiting, error if final else None)
        finally:
            for waiting in here:
                _settle(waiting, client_closed())  # the call was cancelled


def _cancel_with_the_last(batch: list[_Waiting]) -> None:
    """Ends the call when nobody waits for it any more."""
    call = asyncio.current_task()
    assert call is not None
    left = len(batch)

    def gone(_: asyncio.Future[SearchResult | None]) -> None:
        nonlocal left
        left -= 1
        if not left:
            call.cancel()  # no effect once it has settled them all

    for waiting in batch:
        waiting.share.add_done_callback(gone)


def _settle(waiting: _Waiting, outcome: SearchResult | Exception | None) -> None:
    if waiting.share.done():
        return
    if isinstance(outcome, Exception):
        waiting.share.set_exception(outcome)
    else:
        waiting.share.set_result(outcome)
