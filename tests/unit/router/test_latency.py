"""A node's latency: right within its error, forgetful, and of constant size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.latency import ERROR_MAX, GENERATION_S, LONGEST_S, SHORTEST_S, Latency

TIMES = st.lists(st.floats(SHORTEST_S, LONGEST_S), min_size=1, max_size=200)


@given(TIMES, st.sampled_from((0.05, 0.5, 0.95, 1.0)))
def test_a_quantile_is_wrong_by_a_bounded_share_of_itself(times: list[float], share: float) -> None:
    latency = Latency()
    for took_s in times:
        latency.observe(took_s, 0.0)
    true_s = float(np.quantile(times, share, method="inverted_cdf"))
    assert latency.quantile_s(share, 0.0) == pytest.approx(true_s, rel=ERROR_MAX * 1.01)
    assert latency.mean_s(0.0) == pytest.approx(np.mean(times))


def test_what_is_outside_the_bounds_counts_as_the_bound() -> None:
    latency = Latency()
    for took_s in (0.0, SHORTEST_S / 9):
        latency.observe(took_s, 0.0)
    assert latency.quantile_s(1.0, 0.0) <= SHORTEST_S * (1 + 3 * ERROR_MAX)
    latency.observe(LONGEST_S * 9, 0.0)
    assert latency.quantile_s(1.0, 0.0) >= LONGEST_S * (1 - 3 * ERROR_MAX)


def test_it_remembers_one_generation_and_forgets_two() -> None:
    latency = Latency()
    for now_s in np.arange(0.0, 3 * GENERATION_S, 0.1):
        latency.observe(1.0 if now_s < GENERATION_S else 0.01, float(now_s))
        assert latency.count(float(now_s)) >= min(now_s, GENERATION_S) * 10 - 1
    assert latency.quantile_s(1.0, 3 * GENERATION_S) == pytest.approx(0.01, rel=2 * ERROR_MAX)
    assert latency.count(5 * GENERATION_S) == 0
    assert latency.mean_s(5 * GENERATION_S) == latency.quantile_s(0.95, 5 * GENERATION_S) == 0.0


def test_what_nobody_waited_for_counts_where_it_shows_the_node_slower_and_a_refusal_never() -> None:
    latency = Latency()
    latency.ended(9.0, "CANCELLED", 0.0)
    assert latency.count(0.0) == 0, "nothing is known to compare it with"
    for _ in range(100):
        latency.ended(0.1, "", 0.0)
    latency.ended(0.05, "CANCELLED", 0.0)
    latency.ended(0.0001, "OVERLOADED", 0.0)
    latency.ended(9.0, "UNREACHABLE", 0.0)
    assert latency.count(0.0) == 100
    latency.ended(0.5, "CANCELLED", 0.0)
    latency.ended(0.5, "DEADLINE_EXCEEDED", 0.0)
    assert latency.count(0.0) == 102


def test_it_takes_no_more_room_for_more_searches() -> None:
    def size(latency: Latency) -> int:
        return sum(sys.getsizeof(one.buckets) + len(one.buckets) for one in (latency._now, latency._before))

    latency, fresh = Latency(), Latency()
    for turn in range(10_000):
        latency.observe(0.0001 * turn, 0.01 * turn)
    assert size(latency) == size(fresh)
