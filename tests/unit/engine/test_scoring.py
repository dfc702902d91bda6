"""Exact scores and the order of hits."""

from __future__ import annotations

import numpy as np
import pytest

from shard_server.engine import scoring
from vectorfleet.v1 import types_pb2


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE])
def test_scores_do_not_depend_on_company(metric: int) -> None:
    rng = np.random.default_rng(5)
    queries, vectors = rng.standard_normal((3, 77), np.float32), rng.standard_normal((50, 77), np.float32)
    query_of = np.arange(50) % 3
    together = scoring.exact_scores(queries, query_of, vectors.__getitem__, metric)
    alone = [
        scoring.exact_scores(queries[q : q + 1], np.zeros(1, np.int64), vectors[i : i + 1].__getitem__, metric)[0]
        for i, q in enumerate(query_of)
    ]
    assert together.tolist() == alone


def test_ties_are_ordered_by_id() -> None:
    ids = [b"b", b"a", b"c", b"aa"]
    keys = np.array([1, 1, 0, 1], np.float32)

    def ids_of(positions: np.ndarray) -> list[bytes]:
        return [ids[position] for position in positions]

    order = scoring.best_first(keys[None], lambda _, positions: ids_of(positions))[0]
    assert ids_of(order) == [b"c", b"a", b"aa", b"b"]
    for k in range(1, 6):
        assert sorted(ids_of(scoring.smallest(keys, k, ids_of))) == sorted(ids_of(order[:k]))


def test_ties_of_different_queries_do_not_mix() -> None:
    ids = [[b"a", b"c", b"b"], [b"y", b"x", b"z"]]
    keys = np.array([[1, 1, 1], [2, 2, 1]], np.float32)
    order = scoring.best_first(keys, lambda query, positions: [ids[query][one] for one in positions])
    assert order.tolist() == [[0, 2, 1], [2, 1, 0]]


def test_absent_candidates_come_last_and_have_no_id() -> None:
    keys = np.array([[np.inf, 3, np.inf, -1]], np.float32)

    def ids_of(query: int, positions: np.ndarray) -> list[bytes]:
        raise AssertionError

    assert scoring.best_first(keys, ids_of)[0, :2].tolist() == [3, 1]


def test_a_zero_vector_scores_zero_under_cosine() -> None:
    scores = scoring.exact_scores(
        np.ones((1, 3), np.float32),
        np.zeros(1, np.int64),
        np.zeros((1, 3), np.float32).__getitem__,
        types_pb2.METRIC_COSINE,
    )
    assert scores.tolist() == [0.0]
