"""Where the time of one piece of work goes: a stopwatch with a lap for each stage.

It is handed down as a plain callable (`engine.stages.Lap`), so that the engine, which calls it between its steps, knows nothing
of who looks. A lap costs one look at the clock; stages that come again add up.
"""

from __future__ import annotations

import time


class Laps:
    """One stopwatch, started when it is made. Used by one thread at a time."""

    __slots__ = ("_last_s", "spent_s")

    def __init__(self) -> None:
        self._last_s = time.perf_counter()
        self.spent_s: dict[str, float] = {}
        """Stage → seconds."""

    def __call__(self, stage: str) -> None:
        """Ends a stage: it began when the one before it ended."""
        now_s = time.perf_counter()
        self.spent_s[stage] = self.spent_s.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s
