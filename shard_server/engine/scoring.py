"""Exact scores and the final order of hits: pure numpy, and the only place that says what a score is.

Scores are computed in float64 from the raw float32 vectors and rounded once to float32. So a point scores the same to
the last bit whichever segment, buffer or shard it sits in, and answers repeat whatever the number of shards.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet.v1 import types_pb2

_VALUES_PER_STEP: Final = 1 << 20


def rows_per_step(dim: int) -> int:
    """How many vectors are widened to float64 at once."""
    return max(1, _VALUES_PER_STEP // dim)


def norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n] Euclidean norms of float32[n, dim]; computed in float64, so that no square overflows."""
    wide = vectors.astype(np.float64)
    lengths: NDArray[np.float32] = np.sqrt(np.vecdot(wide, wide)).astype(np.float32)
    return lengths


def normalised(vectors: NDArray[np.float32], lengths: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """float32[n, dim] of length 1; `lengths` are their norms where the caller has them."""
    if lengths is None:
        lengths = norms(vectors)
    scale = np.where(lengths > 0, lengths, np.float32(1))
    return np.ascontiguousarray(vectors / scale[:, None])


def exact_scores(
    queries: NDArray[np.float32],
    query_of: NDArray[np.int64],
    vectors_of: Callable[[slice], NDArray[np.float32]],
    metric: int,
) -> NDArray[np.float32]:
    """Scores of pairs.

    Args:
        queries: float32[nq, dim], raw.
        query_of: int64[n], the query of each vector.
        vectors_of: the raw vectors of some of the pairs, float32[m, dim]; called step by step.
        metric: `Metric` number.

    Returns:
        float32[n]: L2 distance, inner product, or cosine similarity (0 for a zero vector).
    """
    result = np.empty(len(query_of), np.float32)
    step = rows_per_step(queries.shape[1])
    for first in range(0, len(query_of), step):
        part = slice(first, first + step)
        left, right = queries[query_of[part]], vectors_of(part)
        if metric == types_pb2.METRIC_L2:
            apart = np.subtract(left, right, dtype=np.float64)
            result[part] = np.sqrt(np.vecdot(apart, apart))
            continue
        left, right = left.astype(np.float64), right.astype(np.float64)
        products = np.vecdot(left, right)
        if metric == types_pb2.METRIC_COSINE:
            lengths = np.sqrt(np.vecdot(left, left)) * np.sqrt(np.vecdot(right, right))
            products = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        result[part] = products
    return result


def ascending_key(scores: NDArray[np.float32], metric: int) -> NDArray[np.float32]:
    """The scores, or their negatives: smaller is better for every metric."""
    return scores if metric == types_pb2.METRIC_L2 else -scores


def best_first(keys: NDArray[np.float32], ids_of: Callable[[int, NDArray[np.int64]], list[bytes]]) -> NDArray[np.int64]:
    """Orders the candidates of each query by key, then id.

    Args:
        keys: float32[nq, n], smaller is better; infinite where there is no candidate.
        ids_of: the ids (UTF-8) of candidates of one query by their positions; called for ties only.

    Returns:
        int64[nq, n] positions.
    """
    order = keys.argsort(axis=1)
    ascending = keys[np.arange(len(keys))[:, None], order]
    tied = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] < np.inf)
    for query in tied.any(axis=1).nonzero()[0].tolist():
        edges = np.flatnonzero(np.diff(np.concatenate(([False], tied[query], [False])).astype(np.int8)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            run = order[query, first : last + 1]
            ids = ids_of(query, run)
            order[query, first : last + 1] = run[sorted(range(len(ids)), key=ids.__getitem__)]
    return order


def smallest(
    keys: NDArray[np.float32], k: int, ids_of: Callable[[NDArray[np.int64]], list[bytes]]
) -> NDArray[np.int64]:
    """The k smallest of the candidates of one query by key, then id; in no order.

    Args:
        keys: float32[n].
        k: how many.
        ids_of: as for `best_first`; called for those that tie with the k-th only.

    Returns:
        int64[min(k, n)] positions.
    """
    if len(keys) <= k:
        return np.arange(len(keys))
    bound = np.partition(keys, k - 1)[k - 1]
    below, tied = np.flatnonzero(keys < bound), np.flatnonzero(keys == bound)
    room = k - len(below)
    if len(tied) > room:
        ids = ids_of(tied)
        tied = tied[heapq.nsmallest(room, range(len(ids)), key=ids.__getitem__)]
    return np.concatenate((below, tied))
