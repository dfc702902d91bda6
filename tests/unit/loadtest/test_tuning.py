"""The search for the least effort that reaches a recall."""

from __future__ import annotations

import pytest

from loadtest.peers.tuning import PRECISION, tune


@pytest.mark.parametrize("needed", [1, 7, 40, 333, 1_000])
def test_the_least_effort_that_is_enough_is_found(needed: int) -> None:
    tried: list[int] = []

    def recall_of(effort: int) -> float:
        tried.append(effort)
        return min(1.0, 0.95 * effort / needed)

    found = tune(recall_of, least=1, most=1_000, target=0.95)
    assert found.reached
    assert needed <= found.effort <= needed * (1 + PRECISION) + 1
    assert found.recall == pytest.approx(min(1.0, 0.95 * found.effort / needed))
    assert len(tried) == len(set(tried)) <= 25


def test_more_effort_is_not_spent_where_it_brings_nothing() -> None:
    tried: list[int] = []

    def recall_of(effort: int) -> float:
        tried.append(effort)
        return min(0.8, effort / 50)

    found = tune(recall_of, least=10, most=1_000_000, target=0.95)
    assert (found.reached, found.recall) == (False, 0.8)
    assert max(tried) < 500


def test_the_largest_effort_may_fall_short() -> None:
    found = tune(lambda effort: effort / 1_000, least=10, most=100, target=0.95)
    assert (found.effort, found.recall, found.reached) == (100, 0.1, False)
