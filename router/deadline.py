"""How long a caller waits, carried through every layer as one value.

A deadline is a moment of the monotonic clock, not a length of time: a layer that took its share leaves the rest to the next
without arithmetic. Fan-outs keep a margin (`answer_by_s`), so that a node which hangs costs its part of an answer and
the answer still reaches the caller in time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

MARGIN_SHARE: Final = 0.1
"""The share of the time left that is kept for merging and for the way back."""
MARGIN_MIN_S: Final = 0.05
"""At least this much is kept, as long as that leaves half of the time."""
MARGIN_MAX_S: Final = 5.0
"""More is never needed; a backup has a deadline of a day."""


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The moment, in seconds of `time.monotonic`, after which nobody waits for the answer."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def of_caller(cls, remaining_s: float | None, default_s: float) -> Deadline:
        """The caller's own deadline, or the server's default where the caller gave none."""
        return cls(time.monotonic() + (default_s if remaining_s is None else remaining_s))

    def remaining_s(self) -> float:
        """Seconds left; 0 when it has passed."""
        return max(0.0, self.at_s - time.monotonic())

    def answer_by_s(self) -> float:
        """The moment by which all that is waited for must have come, so that the answer itself arrives in time.

        So does an error that says what was waited for; at the deadline itself, gRPC only tells the caller that it passed.
        """
        left = self.remaining_s()
        return self.at_s - min(left / 2, max(left * MARGIN_SHARE, MARGIN_MIN_S), MARGIN_MAX_S)

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        return min(self, Deadline.after(seconds))
