"""How good an answer is: recall scored by distance, and nDCG as BEIR computes it. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def nearest_distances(base: Floats, queries: Floats, k: int) -> NDArray[np.float64]:
    """Finds the squared L2 distances of the k nearest rows of each query, float64 (queries, k), nearest first.

    Candidates come from float32 products, twice as many as asked for; the distances of those are then computed in float64.
    """
    lengths = np.einsum("ij,ij->i", base, base)
    found = np.empty((len(queries), k), np.float64)
    wanted = min(2 * k, len(base))
    for start in range(0, len(queries), 32):
        part = queries[start : start + 32]
        rough = lengths[None, :] - 2.0 * (part @ base.T)
        rows = np.argpartition(rough, wanted - 1, axis=1)[:, :wanted]
        exact = np.sort(_squared(base, part, rows), axis=1)
        found[start : start + len(part)] = exact[:, :k]
    return found


def recall_by_distance(base: Floats, queries: Floats, answers: NDArray[np.int64], bounds: NDArray[np.float64]) -> float:
    """Counts how many answered rows are as near as the k-th nearest, of all that were asked for.

    Args:
        base: float32 (points, dim).
        queries: float32 (queries, dim).
        answers: rows of `base`, int64 (queries, k); -1 where an answer has fewer. A row that stands twice counts once.
        bounds: squared distances of the k nearest, from `nearest_distances`, float64 (queries, k).

    Returns:
        recall@k, 0 to 1.
    """
    k = bounds.shape[1]
    rows = np.sort(answers[:, :k], axis=1)
    doubled = np.zeros_like(rows, dtype=bool)
    doubled[:, 1:] = rows[:, 1:] == rows[:, :-1]
    good = _squared(base, queries, np.maximum(rows, 0)) <= bounds[:, -1:] * (1 + 2e-6)
    return float((good & (rows >= 0) & ~doubled).sum() / (len(queries) * k))


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """nDCG@k of one query: gain = judged relevance, discount = log2(rank + 1), as trec_eval and BEIR have it."""
    gains = [relevant.get(name, 0) for name in ranked[:k]]
    ideal = sorted(relevant.values(), reverse=True)[:k]
    best = _discounted(ideal)
    return _discounted(gains) / best if best else 0.0


def recall_of_judged(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """The share of the relevant texts that stand among the first k."""
    return len(set(ranked[:k]) & relevant.keys()) / len(relevant)


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(rank + 1) for rank, gain in enumerate(gains, 1)))


def _squared(base: Floats, queries: Floats, rows: NDArray[Any]) -> NDArray[np.float64]:
    squared = np.empty(rows.shape, np.float64)
    for at, (query, chosen) in enumerate(zip(queries, rows, strict=True)):
        apart = base[chosen].astype(np.float64) - query.astype(np.float64)
        squared[at] = np.einsum("ij,ij->i", apart, apart)
    return squared
