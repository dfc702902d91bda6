"""The policy that chooses segments to merge."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shard_server.engine.compaction import SegmentSize, segments_to_merge


def merge(rows: list[int], *, idle: bool, dead: list[int] | None = None, rows_max: int = 10**9) -> tuple[int, ...]:
    sizes = [SegmentSize(number, size, (dead or [0] * len(rows))[number]) for number, size in enumerate(rows)]
    return segments_to_merge(sizes, idle=idle, rows_at_sealing=100, rows_max=rows_max)


def test_four_of_one_size_are_merged_under_load() -> None:
    assert merge([100, 100, 100], idle=False) == ()
    assert merge([100, 100, 100, 100], idle=False) == (0, 1, 2, 3)
    assert merge([1600, 100, 100, 100], idle=False) == ()


def test_a_pause_folds_the_rest_but_spares_the_large() -> None:
    assert merge([9700, 100, 100, 100], idle=True) == (1, 2, 3)
    assert merge([9500, 100, 100, 100], idle=True) == (1, 2, 3, 0)
    assert merge([100_000, 10], idle=True) == ()


def test_a_segment_with_many_dead_rows_is_rewritten_alone() -> None:
    assert merge([100, 100], idle=False, dead=[0, 21]) == (1,)
    assert merge([100, 1000], idle=False, dead=[20, 0]) == ()


@given(rows=st.lists(st.integers(1, 100_000), max_size=40), rows_max=st.integers(100, 200_000), idle=st.booleans())
def test_merging_comes_to_an_end_with_few_segments(rows: list[int], rows_max: int, idle: bool) -> None:
    total = sum(rows)
    for _ in range(200):
        chosen = merge(rows, idle=idle, rows_max=rows_max)
        if not chosen:
            break
        assert len(chosen) == len(set(chosen)) > 1
        merged = sum(rows[number] for number in chosen)
        assert merged <= rows_max
        rows = [size for number, size in enumerate(rows) if number not in chosen] + [merged]
        assert sum(rows) == total
    else:
        raise AssertionError("merging never ends")
