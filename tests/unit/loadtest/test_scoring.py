"""Recall and nDCG against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtest import scoring


def test_ndcg_by_hand() -> None:
    relevant = {"a": 1, "b": 1}
    assert scoring.ndcg(["a", "b", "x"], relevant, 10) == 1.0
    assert scoring.ndcg(["x", "a"], relevant, 10) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert scoring.ndcg(["x", "a"], relevant, 1) == 0.0
    assert scoring.ndcg(["b", "a"], {"a": 2, "b": 1}, 10) == pytest.approx(
        (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    )
    assert scoring.ndcg([], relevant, 10) == 0.0


def test_recall_of_judged() -> None:
    assert scoring.recall_of_judged(["x", "a", "b"], {"a": 1, "b": 1}, 2) == 0.5
    assert scoring.recall_of_judged(["x", "a", "b"], {"a": 1, "b": 1}, 3) == 1.0


def test_recall_by_distance() -> None:
    base = np.array([[0, 0], [1, 0], [0, 1], [9, 9]], np.float32)
    query = np.zeros((1, 2), np.float32)
    bounds = scoring.nearest_distances(base, query, 2)
    assert bounds.tolist() == [[0.0, 1.0]]

    def recall(*rows: int) -> float:
        return scoring.recall_by_distance(base, query, np.array([rows], np.int64), bounds)

    assert recall(0, 1) == recall(0, 2) == 1.0, "a tie with the k-th is as right as the k-th"
    assert recall(0, 3) == recall(0, 0) == recall(0, -1) == 0.5
    assert recall(-1, -1) == 0.0


def test_nearest_distances_agree_with_brute_force() -> None:
    rng = np.random.default_rng(2)
    base, queries = rng.standard_normal((500, 9), np.float32), rng.standard_normal((70, 9), np.float32)
    brute = np.sort(((queries[:, None, :].astype(np.float64) - base[None]) ** 2).sum(axis=2), axis=1)[:, :10]
    np.testing.assert_allclose(scoring.nearest_distances(base, queries, 10), brute, rtol=1e-9)
