"""Turning calls away at the door while the router itself is behind: before their requests are received.

A router is one event loop. Where more comes than it can take up, whatever waits for it is late, answers of the nodes included;
and to receive and parse a request only in order to refuse it makes that worse. So the loop's delay is watched, and while it
stays long, calls on points whose callers have little time are answered OVERLOADED at once: a flood of others' calls must not fail
who has time to wait. As in CoDel (Nichols and Jacobson, 2012) a delay is looked at and not a length, and a burst is let pass. A
few callers whose requests are large delay the loop as well; that is their own price, and no crowd.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from router import point_service, search_service
from vectorfleet import errors, serving

TICK_S: Final = 0.02
DELAY_MAX_S: Final = 0.05
"""A loop that takes longer to come round is behind."""
BURST_S: Final = 0.1
"""It is behind when it has been late at every look for so long: one long stop is not an overload."""
_SHED: Final = (f"/{search_service.NAME}/", f"/{point_service.NAME}/")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


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

    async def run(self) -> None:
        """Watches the loop until it is cancelled."""
        while True:
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            self.delay.observe(now_s - due_s, now_s)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Lets a call in, or not."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_SHED):
            return handler  # type: ignore[no-any-return]
        self.delay.came()
        if not self.delay.behind or handler.unary_unary is None:
            return handler  # type: ignore[no-any-return]
        return self._doubting(handler)

    def _doubting(self, handler: Any) -> Handler:
        """The same handler as a stream's, since those run before the request has come; the caller sees no difference."""

        async def run(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            left_s = context.time_remaining()
            if left_s is not None and self.delay.last_s > SHARE_MAX * left_s:
                error = errors.ResourceExhausted(
                    f"the router is {self.delay.last_s:.2g} s behind, too long for a call with {left_s:.2g} s left"
                )
                self._shed(error.reason)
                await serving.abort(context, error)
            async for request in requests:
                yield await handler.unary_unary(request, context)
                return

        changed: Handler = grpc.stream_stream_rpc_method_handler(
            run, handler.request_deserializer, handler.response_serializer
        )
        return changed
