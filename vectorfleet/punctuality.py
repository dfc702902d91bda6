"""Refusing early what would come too late: admission to a queue by time, as pure state.

A queue that is bounded by its length alone serves, under overload, only work whose caller has gone. So what comes is asked
how long it can wait, and is refused at once where what is ahead of it will take longer. That is told by the pace at
which work came back lately: nothing is configured, and it follows whatever the work costs now.

A burst is not an overload: refusing begins when newcomers would have been late for `BURST_S` without a break, and ends when
half of their time would do. Where nothing is ahead, nobody is refused: an idle queue cannot be late.

Time is an argument. Invariant: `ahead` is the weight of all that has entered and not left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST_S: Final = 0.1
HALF_LIFE_S: Final = 0.5
"""Of what the pace remembers, in seconds of work."""
SHARE_MAX: Final = 0.5
"""Of the time that a newcomer has, which the wait may take: the estimate is rough, and late work is lost work."""


@dataclass(slots=True)
class Punctuality:
    """Of one queue."""

    ahead: int = 0
    """Weight of what waits or is under way."""
    _busy_s: float = 0.0
    _done: float = 0.0
    _last_s: float = float("-inf")
    _late_since_s: float | None = None

    def expected_s(self, weight: int) -> float:
        """How long so much more will take until it has come back; 0 where nothing is known."""
        return (self.ahead + weight) * self._busy_s / self._done if self._done else 0.0

    def admits(self, weight: int, left_s: float, now_s: float) -> bool:
        """Whether work of this weight, whose caller waits `left_s` more seconds, will be in time. The answer is not counted."""
        expected_s = self.expected_s(weight)
        if not self.ahead or 2 * expected_s <= SHARE_MAX * left_s:
            self._late_since_s = None
            return True
        if expected_s <= SHARE_MAX * left_s:
            return True
        if self._late_since_s is None:
            self._late_since_s = now_s
        return now_s - self._late_since_s < BURST_S

    def enter(self, weight: int) -> None:
        """Counts work in."""
        self.ahead += weight

    def leave(self, weight: int) -> None:
        """Counts it out, however it ended."""
        self.ahead -= weight

    def came_back(self, started_s: float, weight: float, now_s: float) -> None:
        """Learns from work that was done from `started_s` to now; `weight`: the part of it that was done in time.

        Not for what was given up without a word from anybody: that says nothing of the pace.
        """
        # Of work side by side only the time since the last came back: the pace is that of all together.
        spent_s = max(0.0, now_s - max(started_s, self._last_s))
        self._last_s = now_s
        kept = 0.5 ** (spent_s / HALF_LIFE_S)
        self._busy_s = self._busy_s * kept + spent_s
        self._done = self._done * kept + weight
