"""The exact answer where float32 leaves it open.

FAISS compares in float32, and a few spare candidates are scored in float64. A row beyond them can still belong to the k nearest:
where many rows score the same (copies of a vector, the zero query under DOT), or as near to it as rounding reaches (versions of
a document under COSINE). `undecided` says of which queries that cannot be excluded; for them `nearest` scores every live row as
final scores are scored, keeping only k at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import scoring
from shard_server.engine.parts import Part, Parts
from shard_server.engine.ranking import Found
from vectorfleet.v1 import types_pb2

_HALF_ULP: Final = 2.0**-24
_TINY: Final = 2.0**-126
"""What a term may lose to underflow."""
_BEYOND_TERMS: Final = 8
"""Roundings of one comparison other than its sum's: of the difference and the product, or of normalising both sides."""


def undecided(
    found: Found, beyond: NDArray[np.float32], queries: NDArray[np.float32], metric: int, length_max: float
) -> NDArray[np.int64]:
    """The queries of which a row that was not considered may belong to the answer.

    A sum of n products in float32, added up in whatever order, is off by at most n/(1 - n·u) · u · Σ|xᵢ·yᵢ|, with u = 2⁻²⁴
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).

    Args:
        found: the best of those considered: k for each query.
        beyond: float32[nq]: the float32 key of every row that was not considered is at least this.
        queries: float32[nq, dim], raw.
        metric: `Metric` number.
        length_max: no vector is longer; used under DOT alone.

    Returns:
        int64[u], ascending.
    """
    dim = queries.shape[1]
    relative = 1.01 * (dim + _BEYOND_TERMS) * _HALF_ULP
    keys = beyond.astype(np.float64)
    if metric == types_pb2.METRIC_L2:  # FAISS's key is the squared distance, whose terms all have one sign
        least = np.sqrt(np.maximum(0, keys * (1 - relative) - dim * _TINY))
    elif metric == types_pb2.METRIC_DOT:
        least = keys - relative * scoring.norms(queries).astype(np.float64) * length_max - dim * _TINY
    else:
        least = keys - relative - dim * _TINY
    last = np.cumsum(found.counts) - 1
    worst = scoring.ascending_key(found.scores[last], metric)
    return np.flatnonzero(least <= np.nextafter(worst, np.float32(np.inf)))


def length_max(parts: Parts, check: Callable[[], None]) -> float:
    """A bound on the norms of all rows."""
    squared = 0.0
    for part in parts.each:
        step = scoring.rows_per_step(part.vectors.shape[1])
        for first in range(0, part.rows, step):
            check()
            some = part.vectors[first : first + step]
            squared = max(squared, float(np.vecdot(some, some).max()))
    return 1.001 * math.sqrt(squared)


def nearest(
    parts: Parts, query: NDArray[np.float32], k: int, metric: int, check: Callable[[], None]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compares every live row with one query in float64.

    Args:
        parts: all rows.
        query: float32[dim], raw.
        k: hits.
        metric: `Metric` number.
        check: called between steps; raises to end the search.

    Returns:
        float32[n] final scores and int64[n] rows, as the view numbers them, of the min(k, live) nearest, best first.
    """
    keys, found = np.empty(0, np.float32), np.empty(0, np.int64)
    for part in parts.each:
        alive = part.live.live_rows()
        step = scoring.rows_per_step(len(query))
        for first in range(0, len(alive), step):
            check()
            rows = alive[first : first + step]
            seen = _keys(part, rows, query, metric)
            found = np.concatenate((found, part.numbered(rows)))
            keys, found = _best(parts, np.concatenate((keys, seen)), found, k)
    order = scoring.best_first(keys[None], lambda _, positions: parts.ids(found[positions]))[0]
    return scoring.ascending_key(keys[order], metric), found[order]


def _keys(part: Part, rows: NDArray[np.int64], query: NDArray[np.float32], metric: int) -> NDArray[np.float32]:
    # The same function as for final scores, and so the same bits.
    one = np.zeros(len(rows), np.int64)
    return scoring.ascending_key(
        scoring.exact_scores(query[None], one, lambda some: part.vectors[rows[some]], metric), metric
    )


def _best(
    parts: Parts, keys: NDArray[np.float32], found: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    kept = scoring.smallest(keys, k, lambda positions: parts.ids(found[positions]))
    return keys[kept], found[kept]
