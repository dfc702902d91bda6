"""What a search promises where it is hard: exact answers among equals, bounded memory, and an end when it is told to."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from shard_server.engine import comparing, index, search
from shard_server.engine.upkeep import EngineSettings
from tests import oracle
from tests.unit.engine.conftest import OpenReplica, codebook_for, maintain, settle, upsert
from vectorfleet.v1 import types_pb2

METRICS = [types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE]
NAMES = {types_pb2.METRIC_L2: "l2", types_pb2.METRIC_DOT: "dot", types_pb2.METRIC_COSINE: "cosine"}


def of_rows(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Points whose ids are not in the order of their rows."""
    return {f"{(number * 7919) % 100_003:06d}": row for number, row in enumerate(matrix.astype(np.float32))}


def truth(metric: int, query: np.ndarray, points: dict[str, np.ndarray], k: int) -> list[str]:
    """By score as the contract has it, rounded to float32, then by id."""
    scores = oracle.scores(NAMES[metric], query, np.stack(list(points.values())))[0].astype(np.float32)
    keys = scores if oracle.ascending(NAMES[metric]) else -scores
    return [name for _, name in sorted(zip(keys.tolist(), points, strict=True))][:k]


def versions_of_a_document() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    base = rng.standard_normal(384)
    matrix = base + 1e-3 * rng.standard_normal((1500, 384))
    return matrix, matrix[:6] + 1e-4 * rng.standard_normal((6, 384))


def copies() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((40, 16))[rng.integers(0, 40, 1500)]
    return matrix, np.concatenate((np.zeros((1, 16)), matrix[:5]))


def far_from_the_origin() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    matrix = 100 + rng.standard_normal((1500, 64))
    return matrix, matrix[:6]


def too_small_for_squares_in_float32() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    matrix = 1e-21 * rng.standard_normal((1500, 16))
    return matrix, matrix[:6]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "data", [versions_of_a_document, copies, far_from_the_origin, too_small_for_squares_in_float32]
)
def test_exact_is_the_true_answer_where_float32_cannot_tell(
    open_replica: OpenReplica, metric: int, data: object
) -> None:
    matrix, queries = data()  # type: ignore[operator]
    if metric == types_pb2.METRIC_COSINE:
        queries = queries[np.any(queries != 0, axis=1)]
    queries = queries.astype(np.float32)
    points = of_rows(matrix)
    replica = open_replica(dim=matrix.shape[1], metric=metric, settings=EngineSettings(seal_points=600))
    for first in range(0, len(points), 500):  # two segments and a buffer
        replica.commit([upsert(dict(list(points.items())[first : first + 500]))], term=1)
        if first < 1000:
            maintain(replica, 1000.0 + first)
            maintain(replica, 1010.0 + first)
    assert (replica.stats().segments, replica.stats().buffered_points) in {(1, 500), (2, 500)}
    hits = replica.search(queries, 10, exact=True)
    found = [hits.ids[first : first + 10] for first in range(0, len(hits.ids), 10)]
    assert found == [truth(metric, query, points, 10) for query in queries]


def test_memory_does_not_grow_with_queries_times_hits_times_dimension(open_replica: OpenReplica) -> None:
    dim, k, rng = 512, 500, np.random.default_rng(5)
    replica = open_replica(dim=dim, settings=EngineSettings(seal_points=10_000))
    points = of_rows(rng.standard_normal((1000, dim)))
    replica.commit([upsert(points)], term=1)
    queries = np.stack(list(points.values())[:256])
    tracemalloc.start()
    try:
        hits = replica.search(queries, k)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert hits.vectors is None
    assert len(hits.ids) == 256 * k
    assert peak < 256 * k * dim * 4 / 2, "the vectors of all hits were in memory at once"


class EnoughError(Exception):
    """The caller has gone."""


@pytest.mark.parametrize(
    ("exact", "queries", "encoded"),
    [(True, "any", False), (False, "any", True), (True, "zero", False)],
    ids=["every row", "codes", "ties"],
)
def test_a_search_ends_at_whatever_step_it_is_told_to(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch, exact: bool, queries: str, encoded: bool
) -> None:
    monkeypatch.setattr(comparing, "_EXACT_BYTES_PER_STEP", 256 * 8 * 4)
    monkeypatch.setattr(comparing, "_VALUES_PER_CALL", 1)
    monkeypatch.setattr(index, "_CODE_BYTES_PER_CALL", 1)
    rng = np.random.default_rng(6)
    replica = open_replica(metric=types_pb2.METRIC_DOT, settings=EngineSettings(seal_points=1100))
    replica.commit([upsert(of_rows(rng.standard_normal((1100, 8))))], term=1)
    if encoded:
        replica.use_codebook(codebook_for(replica))
    settle(replica)
    vectors = np.zeros((3, 8), np.float32) if queries == "zero" else rng.standard_normal((3, 8), np.float32)

    def steps_until(limit: float) -> int:
        steps = 0

        def check() -> None:
            nonlocal steps
            steps += 1
            if steps >= limit:
                raise EnoughError

        if limit == float("inf"):
            replica.search(vectors, 5, exact=exact, check=check)
        else:
            with pytest.raises(EnoughError):
                replica.search(vectors, 5, exact=exact, check=check)
        return steps

    every = steps_until(float("inf"))
    assert every >= (1100 // 256 if exact else 2 * len(vectors))
    assert [steps_until(limit) for limit in range(1, every + 1)] == list(range(1, every + 1))


def test_under_dot_as_many_rows_are_visited_however_small_the_lists_of_long_vectors(open_replica: OpenReplica) -> None:
    rng = np.random.default_rng(8)
    base = (rng.standard_normal((6_000, 32)) * rng.uniform(0.5, 1.5, (6_000, 1))).astype(np.float32)
    queries = rng.standard_normal((50, 32)).astype(np.float32)
    replica = open_replica(dim=32, metric=types_pb2.METRIC_DOT, settings=EngineSettings(seal_points=6_000))
    replica.commit([upsert({f"{row}": vector for row, vector in enumerate(base)})], 1)
    replica.use_codebook(codebook_for(replica, nlist=256, m=16))
    settle(replica)
    usual, exact = (replica.search(queries, 10, exact=exact).ids for exact in (False, True))
    hits = [set(usual[at : at + 10]) & set(exact[at : at + 10]) for at in range(0, 500, 10)]
    assert sum(map(len, hits)) / 500 > 0.5, (
        "a tenth of the lists, and so a tenth of the rows, on data without structure"
    )


def test_what_few_rows_hold_is_compared_whole(open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    # As many as a collection that was large comes down to: its codebook stays.
    replica = open_replica(settings=EngineSettings(seal_points=2_048), dim=16)
    rng = np.random.default_rng(8)
    replica.commit([upsert({str(n): rng.standard_normal(16).astype(np.float32) for n in range(2_048)})], term=1)
    replica.use_codebook(codebook_for(replica, nlist=32, m=4))
    settle(replica)
    queries = rng.standard_normal((20, 16)).astype(np.float32)
    exact = replica.search(queries, 10, exact=True).ids
    assert replica.search(queries, 10, nprobe=1).ids != exact
    monkeypatch.setattr(search, "EXACT_ROWS", 2_048)
    assert replica.search(queries, 10, nprobe=1).ids == exact
    monkeypatch.setattr(search, "EXACT_ROWS", 2_047)
    assert replica.search(queries, 10, nprobe=1).ids != exact
