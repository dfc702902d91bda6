"""Queries that took long: a line each, not too many of them, and the last ones kept for a bug report.

A line says what was asked (collection, k, nprobe, whether there was a filter, never what is in it), where the time went, and
which trace shows it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from vectorfleet.telemetry.work import Work

THRESHOLD_DEFAULT_MS: Final = 200.0
"""The service's own aim for the 95th percentile."""
KEPT: Final = 256
LINES_BURST: Final = 20
LINES_A_SECOND: Final = 2.0

_log = logging.getLogger("vectorfleet.slow")


class SlowQueries:
    """The slow-query log of a process. Used from one thread."""

    def __init__(self, threshold_ms: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Logs queries of at least `threshold_ms`; 0: none. It may be changed by `set_threshold`."""
        self.set_threshold(threshold_ms)
        self._clock = clock
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._tokens = float(LINES_BURST)
        self._refilled_s = clock()
        self._left_out = 0

    def set_threshold(self, threshold_ms: float) -> None:
        """Changes what counts as slow; 0: nothing."""
        self.threshold_ms = threshold_ms
        self.threshold_ns = threshold_ms * 1e6 if threshold_ms else float("inf")

    def admits(self) -> bool:
        """Whether one more is told now; counts those that are not."""
        now_s = self._clock()
        self._tokens = min(LINES_BURST, self._tokens + (now_s - self._refilled_s) * LINES_A_SECOND)
        self._refilled_s = now_s
        if self._tokens < 1:
            self._left_out += 1
            return False
        self._tokens -= 1
        return True

    def tell(self, work: Work) -> None:
        """Logs one."""
        told = work.told() | {"request_id": work.request_id}
        if work.span is not None:
            told["trace_id"] = work.span.trace_id
        if self._left_out:
            told["left_out_before"] = self._left_out
            self._left_out = 0
        self._kept.append(told)
        extra = {"slow_query": told, "request_id": work.request_id, "trace_id": told.get("trace_id")}
        _log.warning("slow query", extra=extra)

    @property
    def recent(self) -> list[dict[str, Any]]:
        """The last ones, oldest first."""
        return list(self._kept)
