"""How long the searches of one node took lately: a histogram that forgets, as pure state.

It is what copies are compared by (replica_choice.py) and what says when a search is late for its node (hedging.py). The
histograms of metrics.py cannot serve: they add up for as long as the process lives, and their few bounds are for people.

Buckets grow by a constant factor, so that a quantile is wrong by a constant share of itself, whatever its size (DDSketch:
Masson, Rim, Lee, VLDB 2019). Two generations forget: one is filled, the one before it is still read, and what is older is gone.
A node that nobody asks becomes unknown in this way, and is worth a try again.

Time is an argument: seconds of a monotonic clock. Invariants: its size is constant; an observation costs a logarithm and three
additions.
"""

from __future__ import annotations

from math import inf, log
from typing import Final

GENERATION_S: Final = 10.0
"""What is read is at least so old, if there is so much, and at most twice."""
ERROR_MAX: Final = 0.05
"""Of a quantile, as a share of it, from `SHORTEST_S` to `LONGEST_S`."""
SHORTEST_S: Final = 0.0001
LONGEST_S: Final = 100.0
_GIVEN_UP: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})
_GROWTH: Final = (1 + ERROR_MAX) / (1 - ERROR_MAX)
_PER_LOG: Final = 1 / log(_GROWTH)
_BUCKETS: Final = int(log(LONGEST_S / SHORTEST_S) * _PER_LOG) + 1


class Latency:
    """Of one node."""

    __slots__ = ("_before", "_begun_s", "_now")

    def __init__(self) -> None:
        """Knows nothing."""
        self._now = _Generation()
        self._before = _Generation()
        self._begun_s = -inf

    def observe(self, took_s: float, now_s: float) -> None:
        """Adds one search that was answered."""
        if now_s - self._begun_s >= GENERATION_S:
            self._turn(now_s)
        now = self._now
        bucket = int(log(took_s / SHORTEST_S) * _PER_LOG) if took_s > SHORTEST_S else 0
        now.buckets[bucket if bucket < _BUCKETS else -1] += 1
        now.count += 1
        now.sum_s += took_s

    def ended(self, took_s: float, error: str, now_s: float) -> None:
        """Adds one that ended so, "" or a reason of docs/errors.md.

        Of one whose end nobody waited for, only this is known: it took at least so long. That tells something where it is more
        than others take. How quickly a search is refused says nothing of searches.
        """
        if not error or (error in _GIVEN_UP and self.count(now_s) and took_s >= self.quantile_s(0.95, now_s)):
            self.observe(took_s, now_s)

    def count(self, now_s: float) -> int:
        """Observations that are remembered."""
        self._turn(now_s)
        return self._now.count + self._before.count

    def mean_s(self, now_s: float) -> float:
        """The mean; 0 where nothing is known."""
        count = self.count(now_s)
        return (self._now.sum_s + self._before.sum_s) / count if count else 0.0

    def quantile_s(self, share: float, now_s: float) -> float:
        """The time within which this share of the searches, above 0 and at most 1, were answered; 0 where nothing is known."""
        above = self.count(now_s) * (1 - share)
        for bucket in range(_BUCKETS - 1, -1, -1):
            above -= self._now.buckets[bucket] + self._before.buckets[bucket]
            if above < 0:
                return SHORTEST_S * _GROWTH**bucket * (1 + ERROR_MAX)  # between the bounds, by the same share from both
        return 0.0

    def _turn(self, now_s: float) -> None:
        age_s = now_s - self._begun_s
        if age_s >= GENERATION_S:
            self._before = self._now if age_s < 2 * GENERATION_S else _Generation()
            self._now = _Generation()
            self._begun_s = now_s


class _Generation:
    __slots__ = ("buckets", "count", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * _BUCKETS
        self.count = 0
        self.sum_s = 0.0
