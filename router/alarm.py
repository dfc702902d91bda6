"""One timer for many deadlines: almost all of them are met, and a timer each would cost every search its making and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_NEVER: Final = float("inf")


class Alarm:
    """Rings when the earliest of the deadlines may have come that it was told. Belongs to one event loop."""

    def __init__(self, ring: Callable[[float], float]) -> None:
        """Waits for nothing.

        Args:
            ring: is told the time, of `time.monotonic`, and returns the next deadline; infinity: there is none. Deadlines that do
                not matter any more are not taken back: it looks at those that do.
        """
        self._ring = ring
        self._at_s = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def by(self, at_s: float) -> None:
        """Rings at that moment at the latest."""
        if at_s < self._at_s:
            self._set(at_s)

    def stop(self) -> None:
        """Rings no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, at_s: float) -> None:
        self.stop()
        self._at_s = at_s
        left_s = max(0.0, at_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._rings)

    def _rings(self) -> None:
        self._at_s = _NEVER
        self.by(self._ring(time.monotonic()))
