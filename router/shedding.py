"""Turning calls away at the door, before their requests are received: while the router is behind, and from who is refused anyway.

A router is one event loop. Where more comes than it can take up, whatever waits for it is late, answers of the nodes included;
and to receive and parse a request only in order to refuse it makes that worse. So calls on points are answered OVERLOADED at once

1. while the loop's delay stays long, where their callers have little time: a flood of others' calls must not fail who has time
   to wait. As in CoDel (Nichols and Jacobson, 2012) a delay is looked at and not a length, and a burst is let pass. A few callers
   whose requests are large delay the loop as well; that is their own price, and no crowd.
2. from connections whose calls are being refused within: as many of them as would be, but for a few (`crowd`). Other
   connections do not suffer from it.

A call that is turned away costs gRPC's own work and little else: no credential is looked at, nothing is parsed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias

import grpc

from router import point_service, search_service
from router.crowd import Crowds
from vectorfleet import errors, serving

TICK_S: Final = 0.02
DELAY_MAX_S: Final = 0.05
"""A loop that takes longer to come round is behind."""
BURST_S: Final = 0.1
"""It is behind when it has been late at every look for so long: one long stop is not an overload."""
_SHED: Final = (f"/{search_service.NAME}/", f"/{point_service.NAME}/")
_REASON: Final = errors.ResourceExhausted.default_reason
_CODE: Final = errors.REASONS[_REASON].code
_THROTTLED: Final = "turned away unread: calls over this connection are being refused, and so are most like them"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]"


SHARE_MAX: Final = 0.05
"""Of the time that a caller has, which the loop's delay may take: a call waits for the loop again and again."""
CROWD: Final = 32
"""It is behind when so many calls have come since it was late."""


@dataclass(slots=True)
class LoopDelay:
    """Whether an event loop is behind. Pure; times are of one monotonic clock, in seconds."""

    behind: bool = False
    last_s: float = 0.0
    """The delay at the last look."""
    _late_since_s: float | None = None
    _came: int = 0

    def came(self) -> None:
        """Counts a call."""
        self._came += 1

    def observe(self, delay_s: float, now_s: float) -> None:
        """Notes how late a callback ran."""
        self.last_s = delay_s
        if delay_s <= DELAY_MAX_S:
            self._late_since_s = None
            self._came = 0
            self.behind = False
            return
        if self._late_since_s is None:
            self._late_since_s = now_s
        self.behind = now_s - self._late_since_s >= BURST_S and self._came >= CROWD


class Shedding(grpc.aio.ServerInterceptor):
    """Belongs outside of everything else that serves."""

    def __init__(self, shed: Callable[[str], None]) -> None:
        """Turns nobody away until `run` does.

        Args:
            shed: is told the reason of each refusal.
        """
        self.delay = LoopDelay()
        self._shed = shed
        self._crowds = Crowds()
        # Every call passes here: a handler is wrapped once, not once a call.
        self._watched: dict[str, tuple[Handler, Handler]] = {}

    async def run(self) -> None:
        """Watches the loop until it is cancelled."""
        while True:
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self.delay.observe(now_s - due_s, now_s)
            if self._crowds.members:
                self._crowds.forget(now_s)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Lets a call in, or not."""
        method = handler_call_details.method
        if not method.startswith(_SHED):
            return await continuation(handler_call_details)
        self.delay.came()
        known, watched = self._watched.get(method, (None, None))
        if known is not None and (self.delay.behind or self._crowds.members):
            # A stream's handler, since those run before the request has come; the caller sees no difference.
            enter = partial(self._enter, continuation, handler_call_details)
            doubting: Handler = grpc.stream_stream_rpc_method_handler(
                enter, known.request_deserializer, known.response_serializer
            )
            return doubting
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        if handler is not known or watched is None:
            watched = handler._replace(unary_unary=self._watching(handler.unary_unary, method))  # type: ignore[attr-defined]
            self._watched[method] = handler, watched
        return watched

    def _watching(self, handle: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def run(request: Any, context: Context) -> Any:
            try:
                return await handle(request, context)
            except grpc.aio.AbortError:
                self._aborted(context, method)
                raise

        return run

    async def _enter(
        self,
        continuation: Continuation,
        details: grpc.HandlerCallDetails,
        requests: AsyncIterator[Any],
        context: Context,
    ) -> AsyncIterator[Any]:
        """Answers a call whose request has not come yet."""
        refusal = self._refusal(context, details.method)
        if refusal:
            self._shed(_REASON)
            await context.abort(_CODE, refusal, _trailing_metadata(refusal))
        handler: Any = await continuation(details)
        try:
            if handler.unary_unary is None:  # it refuses by itself: who calls is not known
                async for answer in handler.stream_stream(requests, context):
                    yield answer
                return
            async for request in requests:
                yield await handler.unary_unary(request, context)
                return
        except grpc.aio.AbortError:
            self._aborted(context, details.method)
            raise

    def _refusal(self, context: Context, method: str) -> str:
        """Why to turn a call away; "": it may come in."""
        if self.delay.behind:
            left_s = context.time_remaining()
            if left_s is not None and self.delay.last_s > SHARE_MAX * left_s:
                return f"the router is {self.delay.last_s:.1g} s behind, too long for a call with {left_s:.1g} s left"
        if self._crowds.turns_away(context.peer(), method, time.monotonic(), random.random()):  # noqa: S311 (no secret)
            return _THROTTLED
        return ""

    def _aborted(self, context: Context, method: str) -> None:
        if serving.told(context)[1] == _REASON:
            self._crowds.refused(context.peer(), method, time.monotonic())


@lru_cache(maxsize=128)
def _trailing_metadata(message: str) -> tuple[tuple[str, bytes], ...]:
    return errors.trailing_metadata(errors.ResourceExhausted(message))
