"""Which segments to rewrite, and when: pure policy.

Few, large segments search fastest: every segment pays the per-list cost of a query again. Every merge writes its rows again,
though. Under load, segments of one size class are merged four at a time, so that a row is written about log4(n) times; when
writes pause, what is left over is folded together as long as no large segment is rewritten for the sake of a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FAN_IN: Final = 4
"""Segments of one size class that are merged together."""
IDLE_RATIO: Final = 32
"""In a pause, a segment joins smaller ones that hold at least this part of its rows together. A small one costs a query nearly
as much as a large one: the lists that it visits. So the part is small, though the large one is written again."""
DEAD_SHARE_MAX: Final = 0.2
"""A segment with a larger share of dead rows is rewritten without them."""


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """What the policy needs to know of a segment."""

    number: int
    rows: int
    dead: int


def segments_to_merge(
    sizes: Sequence[SegmentSize], *, idle: bool, rows_at_sealing: int, rows_max: int
) -> tuple[int, ...]:
    """Chooses the segments to rewrite into one; empty: nothing to do.

    Args:
        sizes: all segments.
        idle: whether writes have paused.
        rows_at_sealing: the rows of a freshly sealed segment; the lowest size class.
        rows_max: a merge makes no segment of more rows.
    """
    rotten = [size.number for size in sizes if size.dead > DEAD_SHARE_MAX * size.rows]
    if rotten:
        return (rotten[0],)
    small = sorted((size for size in sizes if size.rows < rows_max), key=lambda size: (size.rows, size.number))
    return _largest_run(small, rows_max) if idle else _full_class(small, rows_at_sealing, rows_max)


def _full_class(small: Sequence[SegmentSize], rows_at_sealing: int, rows_max: int) -> tuple[int, ...]:
    classes: dict[int, list[SegmentSize]] = {}
    for size in small:
        level, bound = 0, rows_at_sealing * 2
        while size.rows > bound:
            level, bound = level + 1, bound * FAN_IN
        classes.setdefault(level, []).append(size)
    for level in sorted(classes):
        group = classes[level][: FAN_IN * 2]
        if len(group) >= FAN_IN and sum(size.rows for size in group) <= rows_max:
            return tuple(size.number for size in group)
    return ()


def _largest_run(small: Sequence[SegmentSize], rows_max: int) -> tuple[int, ...]:
    run: list[int] = []
    total = best = 0
    for size in small:
        if total + size.rows > rows_max:
            break
        run.append(size.number)
        if len(run) > 1 and size.rows <= IDLE_RATIO * total:
            best = len(run)
        total += size.rows
    return tuple(run[:best])
