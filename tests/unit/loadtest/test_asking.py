"""The load that the benchmark makes: arrivals that keep their rate, and answers as rows."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.asking import arrivals, rows_of


def test_arrivals_keep_their_rate_and_repeat() -> None:
    first, again, other = (list(arrivals(1_000, 10.0, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first)
    assert first[-1] < 10.0
    assert len(first) == pytest.approx(10_000, rel=0.05)
    # Independent arrivals: gaps vary as much as they last.
    assert np.std(np.diff(first)) == pytest.approx(0.001, rel=0.1)


def test_absent_hits_are_rows_below_zero() -> None:
    rows = rows_of(np.array([["7", ""]], dtype=object))
    assert rows[0, 0] == 7
    assert rows[0, 1] < 0
