"""From candidates to hits: the best k of each query, scored in float64 and put in their final order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import scoring
from shard_server.engine.parts import Part, Parts


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one part for each query, with float32 keys (smaller is better; infinite where there is none)."""

    part: Part
    keys: NDArray[np.float32]
    """float32[nq, n]"""
    rows: NDArray[np.int64]
    """int64[nq, n], as the part numbers them; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class Found:
    """Final hits of a block of queries, packed: those of query q follow those of query q - 1, best first."""

    counts: NDArray[np.int64]
    """int64[nq]"""
    scores: NDArray[np.float32]
    """float32[sum(counts)]"""
    rows: NDArray[np.int64]
    """int64[sum(counts)], as the view numbers them."""

    @classmethod
    def joined(cls, blocks: Sequence[Found]) -> Found:
        """Those of several blocks, one after another."""
        return cls(
            np.concatenate([block.counts for block in blocks]),
            np.concatenate([block.scores for block in blocks]),
            np.concatenate([block.rows for block in blocks]),
        )


def smallest(
    keys: NDArray[np.float32], rows: NDArray[np.int64], wanted: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `wanted` smallest keys of each query, in no order, with what belongs to them: both float32/int64[nq, wanted]."""
    chosen = keys.argpartition(wanted - 1, axis=1)[:, :wanted]
    each = np.arange(len(keys))[:, None]
    return keys[each, chosen], rows[each, chosen]


def rank(
    parts: Parts,
    candidates: list[Candidates],
    queries: NDArray[np.float32],
    k: int,
    wanted: int,
    metric: int,
    check: Callable[[], None],
) -> tuple[Found, NDArray[np.float32]]:
    """Scores the best `wanted` candidates of each query and keeps k.

    Args:
        parts: where the candidates are.
        candidates: at least one group; in all at least `wanted` a query, or all that there are.
        queries: float32[nq, dim], raw.
        k: hits a query.
        wanted: at least k: float32 rounding near the k-th place must not decide.
        metric: `Metric` number.
        check: called between steps; raises to end the search.

    Returns:
        The hits; and float32[nq], the largest key that was considered: no candidate beyond has a smaller one.
    """
    nq = len(queries)
    keys = _beside([group.keys for group in candidates])
    rows = _beside([group.part.numbered(group.rows) for group in candidates])
    if keys.shape[1] > wanted:
        keys, rows = smallest(keys, rows, wanted)
    there = rows >= 0
    query_of, place = there.nonzero()
    present = rows[query_of, place]

    def vectors_of(some: slice) -> NDArray[np.float32]:
        check()
        return parts.vectors(present[some])

    scores = np.full(rows.shape, np.inf, np.float32)
    scores[query_of, place] = scoring.ascending_key(scoring.exact_scores(queries, query_of, vectors_of, metric), metric)
    order = scoring.best_first(scores, lambda query, positions: parts.ids(rows[query, positions]))[:, :k]
    each = np.arange(nq)[:, None]
    kept = there[each, order]
    counts = kept.sum(axis=1)
    return Found(counts, scoring.ascending_key(scores[each, order][kept], metric), rows[each, order][kept]), keys.max(
        axis=1
    )


def _beside(groups: list[NDArray[Any]]) -> NDArray[Any]:
    """What several groups say of each query, in one row; nearly always there is one group."""
    return groups[0] if len(groups) == 1 else np.concatenate(groups, axis=1)
