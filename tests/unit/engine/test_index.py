"""The index against itself and against the truth.

Joined segments have the same lists as ones encoded again, at the lengths where FAISS would overrun them too; the
default parameters find what is near, also where the lengths of the vectors decide; queries go to the lists that are nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_server.engine import index, scoring
from shard_server.engine.bitmap import LiveRows
from vectorfleet.limits import OVERSAMPLE_DEFAULT
from vectorfleet.v1 import types_pb2

DIM, M = 32, 16
BLOCK_BYTES = 32 * M // 2


@pytest.mark.parametrize("kind", [types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, types_pb2.INDEX_KIND_IVF_PQ])
@pytest.mark.parametrize("first", [31, 32, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_joined_segments_answer_as_encoded_ones(tmp_path: Path, kind: int, first: int) -> None:
    vectors = np.random.default_rng(3).standard_normal((1200, DIM)).astype(np.float32)
    content = index.train_codebook(vectors, kind=kind, metric=types_pb2.METRIC_L2, nlist=1, m=M, seed=1)
    codebook = index.Codebook.load(content, 1)
    parts = [tmp_path / "a", tmp_path / "b"]
    index.encode(parts[0], codebook, [vectors[:first]])
    index.encode(parts[1], codebook, [vectors[first:]])
    index.encode(tmp_path / "whole", codebook, [vectors])
    joined = index.concatenate(tmp_path / "joined", codebook, parts)
    overruns = kind == types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN and first % BLOCK_BYTES == 0
    assert (joined is None) == overruns
    assert (joined is not None) == (tmp_path / "joined").exists()
    if joined is None:
        return
    lists = codebook.assign(vectors[:50], 1)
    answers = [
        index.SegmentIndex.mapped(tmp_path / name).scan(vectors[:50], lists, 20, LiveRows.all_of(1200))
        for name in ("joined", "whole")
    ]
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def of_all_lengths() -> tuple[np.ndarray, np.ndarray]:
    """Clusters, each vector scaled by a lognormal factor: under DOT a few long vectors are near to most queries."""
    rng = np.random.default_rng(5)
    centres = 2 * rng.standard_normal((100, DIM))
    near = centres[rng.integers(0, 100, 5_100)] + rng.standard_normal((5_100, DIM))
    base, queries = near[:5_000] * np.exp(rng.standard_normal((5_000, 1))), near[5_000:]
    return base.astype(np.float32), queries.astype(np.float32)


def of_length_one() -> tuple[np.ndarray, np.ndarray]:
    base, queries = of_all_lengths()
    return scoring.normalised(base), scoring.normalised(queries)


@pytest.mark.parametrize("data", [of_all_lengths, of_length_one])
def test_recall_of_the_defaults_under_inner_product(
    tmp_path: Path, data: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> None:
    base, queries = data()
    content = index.train_codebook(
        base, kind=types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, metric=types_pb2.METRIC_DOT, nlist=128, m=M, seed=1
    )
    codebook = index.Codebook.load(content, 1)
    index.encode(tmp_path / "index", codebook, [base])
    lists = codebook.assign(queries, codebook.default_nprobe)
    wanted = int(10 * OVERSAMPLE_DEFAULT)
    _, found = index.SegmentIndex.mapped(tmp_path / "index").scan(queries, lists, wanted, LiveRows.all_of(len(base)))
    nearest = np.argsort(-(queries @ base.T), axis=1)[:, :10]
    recall = np.mean([len(set(line) & set(truth)) / 10 for line, truth in zip(found, nearest, strict=True)])
    assert recall >= 0.95


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_DOT])
@pytest.mark.parametrize("dead", [0, 700])
def test_a_query_finds_the_same_alone_and_where_lists_are_visited_for_many(
    tmp_path: Path, metric: int, dead: int
) -> None:
    base, queries = of_all_lengths()
    content = index.train_codebook(
        base, kind=types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, metric=metric, nlist=64, m=M, seed=1
    )
    codebook = index.Codebook.load(content, 1)
    index.encode(tmp_path / "index", codebook, [base])
    encoded = index.SegmentIndex.mapped(tmp_path / "index")
    live = LiveRows.all_of(len(base)).without(np.arange(dead))
    lists = codebook.assign(queries, 9)
    together, rows = encoded.scan(queries, lists, 40, live)
    alone = [encoded.scan(queries[one : one + 1], lists[one : one + 1], 40, live)[0] for one in range(len(queries))]
    np.testing.assert_array_equal(np.sort(together), np.sort(np.concatenate(alone)))
    assert rows.min() >= dead


def test_two_ways_to_scan_share_lists_that_one_of_them_owns(tmp_path: Path) -> None:
    base, _ = of_all_lengths()
    content = index.train_codebook(
        base, kind=types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, metric=types_pb2.METRIC_L2, nlist=64, m=M, seed=1
    )
    codebook = index.Codebook.load(content, 1)
    index.encode(tmp_path / "index", codebook, [base])
    encoded = index.SegmentIndex.mapped(tmp_path / "index")
    # One index owns them: two owners would free them twice.
    assert encoded._for_batches is not encoded._index
    assert encoded._for_batches.invlists.this == encoded._index.invlists.this
    assert not encoded._for_batches.own_invlists


def test_lists_that_tie_are_chosen_once() -> None:
    keys = np.array([[3, 1, 1, 1, 0], [0, 1, 2, 3, 4]], np.float32)
    chosen = np.sort(index._smallest(keys, 2))
    assert chosen[1].tolist() == [0, 1]
    assert sorted(keys[0, chosen[0]].tolist()) == [0, 1]


def test_an_index_that_the_disk_did_not_take_is_not_given_a_checksum() -> None:
    # FAISS's own writer passes over it: what is left in its buffer is lost without an error when the file is closed.
    vectors = np.random.default_rng(3).standard_normal((64, DIM)).astype(np.float32)
    content = index.train_codebook(
        vectors, kind=types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, metric=types_pb2.METRIC_L2, nlist=1, m=2, seed=1
    )
    with pytest.raises(OSError, match="No space left"):
        index.encode(Path("/dev/full"), index.Codebook.load(content, 1), [vectors])


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_DOT])
@pytest.mark.parametrize("dim", [32, 30])
def test_queries_are_assigned_to_their_nearest_lists(metric: int, dim: int) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((2_000, dim)).astype(np.float32)
    content = index.train_codebook(
        vectors, kind=types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, metric=metric, nlist=64, m=M, seed=1
    )
    codebook = index.Codebook.load(content, 1)
    queries = rng.standard_normal((40, dim)).astype(np.float32)
    wide = index.pad(queries, codebook.index.d).astype(np.float64)
    centroids = codebook.centroids.astype(np.float64)
    if metric == types_pb2.METRIC_L2:
        exact = ((wide[:, None] - centroids[None]) ** 2).sum(axis=2)
        ranked = np.argsort(exact, axis=1)
    else:
        exact = wide @ centroids.T
        ranked = np.argsort(-exact, axis=1)
    for nprobe in (1, 9, 64, 100):
        lists = codebook.assign(queries, nprobe)
        np.testing.assert_array_equal(np.sort(lists), np.sort(ranked[:, :nprobe]))
