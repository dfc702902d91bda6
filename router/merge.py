"""From each shard's best hits to each query's best hits: one pure function.

It is not the fan-out and not the answer on the wire. Two invariants: a result never holds an id twice (a shard that is being
moved or split may be answered for by two), and equal scores are ordered by id, so that the same points give the same
answer however they are spread over shards.

All queries of a batch are merged in one sort. Ids are strings behind protobuf, dear to touch: they are looked at only
where scores tie, and among the winners. Arrays' own methods are used where numpy has a function as well, which is Python around
them: for the few hits of a lone query that costs more than the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

_NONE: Final = np.empty(0, np.int64)
_NO_SCORE: Final = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    """The hits of all queries on one shard: those of query q follow those of query q - 1, best first."""

    shard: int
    counts: NDArray[np.uint32]
    """Hits of each query, uint32[queries]."""
    scores: NDArray[np.float32]
    """float32[hits]."""
    ids: Sequence[str]
    payloads: Sequence[bytes] = ()
    """Empty, or one a hit."""
    vectors: bytes = b""
    """Empty, or little-endian float32[hits, dim]."""
    matching_points: int = 0
    """Points that pass the search's filter, where it has one."""


@dataclass(frozen=True, slots=True)
class Winners:
    """The hits of all queries over all shards, laid out as in `ShardAnswer`; each names where it came from."""

    offsets: NDArray[np.int64]
    """int64[queries + 1]: the hits of query q are offsets[q] to offsets[q + 1]."""
    answer: NDArray[np.int64]
    """int64[hits]: which of the merged answers."""
    position: NDArray[np.int64]
    """int64[hits]: which hit of that answer."""
    scores: NDArray[np.float32]
    """float32[hits]."""
    ids: list[str]


@dataclass(frozen=True, slots=True)
class _Hits:
    """All hits of all answers, one row each."""

    answers: Sequence[ShardAnswer]
    source: NDArray[np.int64]
    position: NDArray[np.int64]
    query: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, answers: Sequence[ShardAnswer], queries: int) -> _Hits:
        scores = [answer.scores for answer in answers]
        sizes = list(map(len, scores))
        each_query = np.arange(queries)
        return cls(
            answers,
            np.arange(len(answers)).repeat(sizes),
            np.concatenate([_NONE, *map(np.arange, sizes)]),
            np.concatenate([_NONE, *[each_query.repeat(answer.counts) for answer in answers]]),
            np.concatenate([_NO_SCORE, *scores]),
        )

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        names = [answer.ids for answer in self.answers]
        return [names[a][p] for a, p in zip(self.source[rows].tolist(), self.position[rows].tolist(), strict=True)]


def merge(answers: Sequence[ShardAnswer], queries: int, k: int, *, descending: bool) -> Winners:
    """Returns the at most `k` best hits of each query over all shards, ties ordered by id.

    Args:
        answers: of any number of shards, also none.
        queries: how many queries each answer covers.
        k: hits a query.
        descending: whether a larger score is better.
    """
    hits = _Hits.of(answers, queries)
    order = np.lexsort((-hits.scores if descending else hits.scores, hits.query))
    begins = hits.query[order].searchsorted(np.arange(queries + 1))
    _order_ties(hits, order, begins, k)

    found = begins[1:] - begins[:-1]
    rank = np.arange(len(order)) - begins[:-1].repeat(found)
    winners = order[rank < k]
    ids = hits.ids(winners)
    offsets = np.zeros(queries + 1, np.int64)
    np.minimum(found, k).cumsum(out=offsets[1:])
    if len(answers) > 1 and _repeats(ids, offsets):
        _order_ties(hits, order, begins, len(order))  # winners may now come from behind the k best
        winners, ids, offsets = _first_of_each_id(hits, order, begins, k)
    return Winners(offsets, hits.source[winners], hits.position[winners], hits.scores[winners], ids)


def _order_ties(hits: _Hits, order: NDArray[np.int64], begins: NDArray[np.int64], k: int) -> None:
    """Sorts each run of equal scores by id, in place, except the runs that lie wholly behind the k best.

    Python compares strings by code point, which is the order of their UTF-8 bytes.
    """
    query, scores = hits.query[order], hits.scores[order]
    same = (scores[1:] == scores[:-1]) & (query[1:] == query[:-1])
    if not same.any():
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):  # the run is order[first : last + 1]
        if first - begins[query[first]] < k:
            run = order[first : last + 1]
            ids = hits.ids(run)
            order[first : last + 1] = run[sorted(range(len(ids)), key=ids.__getitem__)]


def _repeats(ids: list[str], offsets: NDArray[np.int64]) -> bool:
    if len(set(ids)) == len(ids):
        return False
    return any(len(set(ids[begin:end])) < end - begin for begin, end in pairwise(offsets.tolist()))


def _first_of_each_id(
    hits: _Hits, order: NDArray[np.int64], begins: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
    """Keeps the best hit of each id and fills up from behind: (winners, their ids, offsets)."""
    winners: list[int] = []
    ids: list[str] = []
    offsets = [0]
    for begin, end in pairwise(begins.tolist()):
        best: dict[str, int] = {}
        rows = order[begin:end]
        for point_id, row in zip(hits.ids(rows), rows.tolist(), strict=True):
            if len(best) == k:
                break
            best.setdefault(point_id, row)
        winners.extend(best.values())
        ids.extend(best)
        offsets.append(len(winners))
    return np.array(winners, np.int64), ids, np.array(offsets, np.int64)
