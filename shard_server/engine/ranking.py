"""From candidates to hits: the best k of each query, scored in float64 and put in their final order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import scoring
from shard_server.engine.parts import Part, Places


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one part for each query, with float32 keys (smaller is better; infinite where there is none)."""

    part: int
    keys: NDArray[np.float32]
    """float32[nq, n]"""
    rows: NDArray[np.int64]
    """int64[nq, n]; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class Found:
    """Final hits of a block of queries, packed: those of query q follow those of query q - 1, best first."""

    counts: NDArray[np.int64]
    """int64[nq]"""
    scores: NDArray[np.float32]
    """float32[sum(counts)]"""
    places: Places
    """sum(counts) of them."""

    @classmethod
    def joined(cls, blocks: Sequence[Found]) -> Found:
        """Those of several blocks, one after another."""
        return cls(
            np.concatenate([block.counts for block in blocks]),
            np.concatenate([block.scores for block in blocks]),
            Places.joined([block.places for block in blocks]),
        )


def smallest(
    keys: NDArray[np.float32], rows: NDArray[np.int64], wanted: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `wanted` smallest keys of each query, in no order, with what belongs to them: both float32/int64[nq, wanted]."""
    chosen = np.argpartition(keys, wanted - 1, axis=1)[:, :wanted]
    return np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)


def rank(
    parts: list[Part],
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
    nq, dim = queries.shape
    keys = np.concatenate([group.keys for group in candidates], axis=1)
    rows = np.concatenate([group.rows for group in candidates], axis=1)
    part_of = np.concatenate([np.full(group.keys.shape[1], group.part, np.int32) for group in candidates])
    if keys.shape[1] > wanted:
        chosen = np.argpartition(keys, wanted - 1, axis=1)[:, :wanted]
        each = np.arange(nq)[:, None]
        keys, rows, pair_part = keys[each, chosen], rows[each, chosen], part_of[chosen]
    else:
        pair_part = np.broadcast_to(part_of, rows.shape)
    there = rows >= 0
    query_of, _ = np.nonzero(there)
    places = Places(pair_part[there], rows[there])

    def vectors_of(some: slice) -> NDArray[np.float32]:
        check()
        return places[some].vectors(parts, dim)

    scores = scoring.exact_scores(queries, query_of, vectors_of, metric)
    order = scoring.best_first(
        query_of, scoring.ascending_key(scores, metric), lambda positions: places[positions].ids(parts)
    )
    available = np.bincount(query_of, minlength=nq)
    place_in_query = np.arange(len(order)) - (np.cumsum(available) - available)[query_of[order]]
    kept = order[place_in_query < k]
    return Found(np.minimum(available, k), scores[kept], places[kept]), keys.max(axis=1)
