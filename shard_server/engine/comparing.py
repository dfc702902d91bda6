"""Rows compared with queries one by one, in float32, by FAISS's loops over raw vectors.

FAISS's BLAS path computes |x|² - 2xy + |y|², which loses all digits for near neighbours. It serves to train and to choose lists;
comparisons here stay below the number of queries at which FAISS takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from shard_server.engine.bitmap import LiveRows
from shard_server.engine.index import Matrix, Rows
from vectorfleet.v1 import types_pb2

_VALUES_PER_CALL: Final = 1 << 26
"""Components that one call compares: some tens of milliseconds, after which it is asked whether to go on."""
_EXACT_BYTES_PER_STEP: Final = 16 << 20
_EXACT_QUERIES_PER_CALL: Final = 16
assert faiss.cvar.distance_compute_blas_threshold > _EXACT_QUERIES_PER_CALL


def rows_per_step(dim: int) -> int:
    """How many rows `nearest_rows` is best given at once; a multiple of 8."""
    return max(8, _EXACT_BYTES_PER_STEP // (4 * dim) & ~7)


def nearest_rows(
    queries: Matrix,
    vectors: Matrix,
    k: int,
    metric: int,
    live: LiveRows,
    check: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float32], Rows]:
    """Compares every live row. Under COSINE both sides must be normalised.

    Args:
        queries: float32[nq, dim].
        vectors: float32[n, dim], C-contiguous; may be mapped memory.
        k: rows a query.
        metric: `Metric` number.
        live: n rows.
        check: called between calls of FAISS; raises to end the search.

    Returns:
        float32[nq, k] squared L2 or inner product, and int64[nq, k] rows; -1 where none is left.
    """
    nq, n = len(queries), len(vectors)
    distances = np.empty((nq, k), np.float32)
    rows = np.full((nq, k), -1, np.int64)
    if n == 0 or live.live == 0:
        return distances, rows
    selector = None if live.bits is None else faiss.IDSelectorBitmap(live.bits)
    queries = np.ascontiguousarray(queries)
    for first in range(0, nq, _EXACT_QUERIES_PER_CALL):
        check()
        last = min(nq, first + _EXACT_QUERIES_PER_CALL)
        arguments = (
            faiss.swig_ptr(queries[first:last]),
            faiss.swig_ptr(vectors),
            queries.shape[1],
            last - first,
            n,
            k,
            faiss.swig_ptr(distances[first:last]),
            faiss.swig_ptr(rows[first:last]),
        )
        if metric == types_pb2.METRIC_L2:
            faiss.knn_L2sqr(*arguments, None, selector)
        else:
            faiss.knn_inner_product(*arguments, selector)
    return distances, rows


def compare_rows(
    queries: Matrix, vectors: Matrix, rows: Rows, metric: int, check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """Compares each query with the rows chosen for it, in place.

    Args:
        queries: float32[nq, dim].
        vectors: float32[n, dim], C-contiguous; may be mapped memory.
        rows: int64[nq, r]; -1 is passed over.
        metric: `Metric` number.
        check: called between calls of FAISS, each of bounded length; raises to end the search.

    Returns:
        float32[nq, r]: squared L2 or inner product; undefined where the row is -1.
    """
    nq, r = rows.shape
    result = np.zeros((nq, r), np.float32)
    rows = np.ascontiguousarray(rows)
    queries = np.ascontiguousarray(queries)
    compare = faiss.fvec_L2sqr_by_idx if metric == types_pb2.METRIC_L2 else faiss.fvec_inner_products_by_idx
    step = max(1, _VALUES_PER_CALL // max(1, r * queries.shape[1]))
    for first in range(0, nq, step):
        check()
        last = min(nq, first + step)
        compare(
            faiss.swig_ptr(result[first:last]),
            faiss.swig_ptr(queries[first:last]),
            faiss.swig_ptr(vectors),
            faiss.swig_ptr(rows[first:last]),
            queries.shape[1],
            last - first,
            r,
        )
    return result
