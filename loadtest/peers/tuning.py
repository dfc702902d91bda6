"""Looks for the least effort with which an approximate index reaches a recall. Pure: the measuring is handed in.

Effort is one number, of which more finds more and costs more: lists visited, candidates kept. Servers are compared at equal
recall, so the number is raised until recall is there, and then brought down as far as it stays there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

GROWTH: Final = 1.5
GAIN_MIN: Final = 0.001
"""Recall that two growths in a row must bring, or more effort is taken to bring none."""
PRECISION: Final = 0.08
"""An effort this near below the one found is not looked for."""


@dataclass(frozen=True)
class Tuned:
    """What was found."""

    effort: int
    recall: float
    reached: bool
    """False: no effort reaches the target; `effort` is where more of it ceased to help."""


def tune(recall_of: Callable[[int], float], *, least: int, most: int, target: float) -> Tuned:
    """Finds the least effort whose recall is at least `target`.

    Args:
        recall_of: measures the recall of an effort, 0 to 1.
        least: the effort to begin with; none below is tried.
        most: the largest that the index takes.
        target: recall, 0 to 1.
    """
    tried = [(least, recall_of(least))]
    while tried[-1][1] < target:
        effort = tried[-1][0]
        if effort >= most or (len(tried) > 3 and tried[-1][1] - tried[-3][1] < GAIN_MIN):
            return Tuned(effort, tried[-1][1], reached=False)
        wider = min(most, math.ceil(effort * GROWTH))
        tried.append((wider, recall_of(wider)))
    enough, recall = tried[-1]
    short = tried[-2][0] if len(tried) > 1 else enough
    while enough - short > max(1, short * PRECISION):
        middle = (short + enough) // 2
        found = recall_of(middle)
        if found >= target:
            enough, recall = middle, found
        else:
            short = middle
    return Tuned(enough, recall, reached=True)
