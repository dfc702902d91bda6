"""Joining encoded segments: the same lists as encoding again, at the lengths where FAISS would overrun them too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shard_server.engine import index
from shard_server.engine.bitmap import LiveRows
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
    assert joined != overruns
    assert joined == (tmp_path / "joined").exists()
    if not joined:
        return
    distances, lists = codebook.assign(vectors[:50], 1)
    answers = [
        index.SegmentIndex(tmp_path / name).scan(vectors[:50], lists, distances, 20, LiveRows.all_of(1200))
        for name in ("joined", "whole")
    ]
    np.testing.assert_array_equal(answers[0][1], answers[1][1])
