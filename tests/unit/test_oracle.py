"""The oracle itself: known answers, and that it fails when an answer is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests import oracle


@dataclass(frozen=True)
class Hit:
    id: str
    score: float


POINTS = {"a": [0.0, 0.0], "b": [3.0, 4.0], "c": [0.0, 1.0], "é": [0.0, 1.0]}


def test_known_scores() -> None:
    assert oracle.scores("l2", [0, 0], [[3, 4]])[0, 0] == 5.0
    assert oracle.scores("dot", [1, 2], [[3, 4]])[0, 0] == 11.0
    assert oracle.scores("cosine", [1, 0], [[2, 0], [0, 3], [-1, 0]])[0].tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(ValueError, match="unknown metric"):
        oracle.scores("manhattan", [1], [[1]])


def test_ties_are_broken_by_the_bytes_of_the_id() -> None:
    found = oracle.nearest("l2", [0, 0], ["é", "c", "b", "a"], [POINTS[name] for name in ("é", "c", "b", "a")], 3)
    assert found == [[("a", 0.0), ("c", 1.0), ("é", 1.0)]]


RIGHT = [Hit("a", 0.0), Hit("c", 1.0), Hit("é", 1.0)]


def test_a_right_answer_passes() -> None:
    oracle.check_answer("l2", [0, 0], POINTS, RIGHT, 3)
    oracle.check_answer("l2", [0, 0], POINTS, [*RIGHT, Hit("b", 5.0)], 9)
    oracle.check_answer("l2", [0, 0], {}, [], 9)


@pytest.mark.parametrize(
    ("hits", "complaint"),
    [
        ([*RIGHT[:2], RIGHT[1]], "twice"),
        ([*RIGHT[:2], Hit("ghost", 1.0)], "do not exist"),
        (RIGHT[:2], "2 hits for k=3"),
        ([RIGHT[0], Hit("c", 1.00002), RIGHT[2]], "truth"),
        ([RIGHT[0], RIGHT[2], RIGHT[1]], "stands before"),
        ([RIGHT[0], RIGHT[1], Hit("b", 5.0)], "not é"),
    ],
)
def test_a_wrong_answer_fails(hits: list[Hit], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        oracle.check_answer("l2", [0, 0], POINTS, hits, 3)


def test_recall_counts_by_distance_and_each_id_once() -> None:
    query = np.zeros((1, 2), np.float32)

    def recall(*names: str, k: int = 2) -> float:
        return oracle.recall("l2", query, POINTS, [[Hit(name, 0.0) for name in names]], k)

    assert recall("a", "c") == recall("a", "é") == 1.0
    assert recall("a", "a") == 0.5
    assert recall("a", "b") == 0.5
    assert recall("a", "ghost") == 0.5
    assert recall("b", "b", "a", "c") == 0.0, "only the first k count"
    assert recall("a", "b", "c", "é", k=50) == 1.0
    assert oracle.recall("dot", [1, 0], POINTS, [[Hit("b", 3.0)]], 1) == 1.0
