"""Refusing early what would come too late: admission to a queue by time, as pure state.

A queue that is bounded by its length alone serves, under overload, only work whose caller has gone. So what comes is asked
how long it can wait, and is refused at once where what is ahead of it will take longer. That is told by the pace at
which work came back lately: nothing is configured, and it follows whatever the work costs now.

A burst is not an overload, and the pace of small work says little of that of a crowd, which travels together: so refusing
begins when newcomers would have been late for `BURST_S`. It ends when for `CALM_S` none would have been: an overload has many
moments in which the queue is short, and a burst let in at each of them would be late, and make others late.

Where nothing is ahead, whoever has twice the time that its own work takes is let in, and while nothing is known, everybody.
Others have waited already where nobody here saw it; one of them is let in now and then, in case the pace is better by now.

Time is an argument. Invariant: `ahead` is the weight of all that has entered and not left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST_S: Final = 0.1
CALM_S: Final = 1.0
HALF_LIFE_S: Final = 0.5
"""Of what the pace remembers, in seconds of work."""
ALONE_SHARE_MAX: Final = 0.5
"""Of the time that a newcomer has, which its own work may take."""


@dataclass(slots=True)
class Punctuality:
    """Of one queue."""

    share_max: float
    """Of the time that a newcomer has, which the wait may take: the estimate is rough, and late work is lost work."""
    ahead: int = 0
    """Weight of what waits or is under way."""
    _busy_s: float = 0.0
    _done: float = 0.0
    _last_s: float = float("-inf")
    _refusing_from_s: float = float("inf")
    _late_s: float = float("-inf")
    """When a newcomer last would have been late."""
    _tried_s: float = float("-inf")
    """When one was last let in that would have been late by itself."""

    def expected_s(self, weight: int) -> float:
        """How long so much more will take until it has come back; 0 where nothing is known."""
        return (self.ahead + weight) * self._busy_s / self._done if self._done else 0.0

    def strained(self, now_s: float) -> bool:
        """Whether it has to be remembered, though nothing be ahead: newcomers would have been late a moment ago."""
        return now_s - self._late_s < CALM_S

    def admits(self, weight: int, left_s: float, now_s: float, *, entering: bool = True) -> bool:
        """Whether work of this weight, whose caller waits `left_s` more seconds, will be in time. The answer is not counted.

        `entering`: False where it is only asked beforehand, which must not use up the one that is let in to try.
        """
        if self.expected_s(weight) <= (self.share_max if self.ahead else ALONE_SHARE_MAX) * left_s:
            return True
        if not self.strained(now_s):
            self._refusing_from_s = now_s + BURST_S
        self._late_s = now_s
        if now_s < self._refusing_from_s:
            return True
        if self.ahead or now_s - self._tried_s < BURST_S:
            return False
        if entering:
            self._tried_s = now_s
        return True

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
