"""The search over one view of a replica.

1. Candidates: rows with codes through these (each query assigned to lists once per codebook; young segments and buffers have no
   lists, and all their codes are read), the rest (the newest rows of buffers, segments without codes, everything when `exact`
   or when a filter leaves little) by comparing every row.
2. The candidates of the codes are compared again on raw vectors, in float32.
3. The best k and some spare ones are scored in float64 and put in their final order (see `ranking`).
4. When `exact`, queries of which a row beyond the spare ones may be among the best are compared in float64 (see `exhaustive`).

A batch is worked on in blocks of queries, and a block in steps: its memory is bounded, and between steps it is asked whether to
go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import comparing, exhaustive, index, probing, scoring
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.parts import Part
from shard_server.engine.ranking import Candidates, Found, rank, smallest
from shard_server.engine.raw_vectors import RawVectors
from shard_server.engine.stages import Lap, untimed
from shard_server.engine.view import Encoded, View
from vectorfleet.limits import CANDIDATES_MAX, OVERSAMPLE_DEFAULT
from vectorfleet.v1 import types_pb2

_SPARE: Final = 8
"""Candidates beyond k that the float64 pass sees, at least: float32 rounding near the k-th place must not decide."""
_CANDIDATES_MIN: Final = 100
"""Candidates of the codes, where the caller does not say how many: near copies have the same codes, and who looks for a vector
that is there, or for a copy of it, asks for one hit."""
_BLOCK_BYTES: Final = 64 << 20
_CANDIDATE_BYTES: Final = 64
"""A candidate's key and row, and their copies on the way to the final order."""
_LIST_BYTES: Final = 24
"""A list's distance and number for one query, and their copies."""
_SPARSE: Final = 8
"""Where fewer than one row in so many may be found, these rows are gathered instead of testing all."""
EXACT_ROWS: Final = 2_048
"""So few rows with codes are compared one by one all the same: that costs about what visiting lists does, and misses nothing. A
shard that has shrunk comes to this, which would find less than one that never was large enough to be encoded."""
EXACT_BYTES: Final = 8 << 20
"""Raw vectors that are compared at most where rows are few, or few pass a filter: what passes is spread over more lists."""
_FILTERED_LISTS: Final = 2
"""Times as many lists are visited under a filter by default: what passes may be far, and is then spread over more of them."""
_WIDEN: Final = 4
_NO_LISTS: Final = np.empty((0, 0), np.int64)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How one batch is searched; zeros mean defaults."""

    k: int
    nprobe: int = 0
    oversample: float = 0.0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Hits:
    """The hits of a batch, packed: those of query q follow those of query q - 1, best first."""

    counts: NDArray[np.uint32]
    """uint32[nq]"""
    scores: NDArray[np.float32]
    """float32[sum(counts)]"""
    ids: list[bytes]
    vectors: NDArray[np.float32] | None
    """float32[sum(counts), dim], raw; None where they were not asked for."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all blocks of a batch have in common."""

    view: View
    encoded: tuple[Encoded, ...]
    """What is searched through its codes."""
    compared: tuple[Part, ...]
    """What is compared row by row: all the rest."""
    options: SearchOptions
    metric: int
    wanted: int
    """Candidates that are scored in float64."""
    wanted_of_codes: int
    """Candidates of the codes that are compared on raw vectors."""
    check: Callable[[], None]
    lap: Lap

    @classmethod
    def of(
        cls, view: View, options: SearchOptions, metric: int, dim: int, check: Callable[[], None], lap: Lap
    ) -> _Plan:
        """Chooses how to search."""
        every_row = options.exact or _few_rows(view, dim)
        ways = ((), view.parts.each) if every_row else (view.encoded, view.bare)
        wanted = options.k + max(_SPARE, options.k // 8)
        asked = int(options.k * (options.oversample or OVERSAMPLE_DEFAULT))
        if not options.oversample:
            asked = max(asked, _CANDIDATES_MIN)
        wanted_of_codes = max(wanted, min(asked, CANDIDATES_MAX) + _SPARE)
        return cls(view, *ways, options, metric, wanted, wanted_of_codes, check, lap)

    def queries_per_block(self) -> int:
        """So many that what is kept of them stays within `_BLOCK_BYTES`."""
        query_bytes = 1
        for part in self.compared:
            query_bytes += _CANDIDATE_BYTES * min(part.live.live, self.wanted)
        for group in self.encoded:
            query_bytes += _LIST_BYTES * group.codebook.nlist
            for part in group.parts:
                query_bytes += _CANDIDATE_BYTES * min(part.live.live, self.wanted_of_codes)
        return max(1, _BLOCK_BYTES // query_bytes)


def search(
    view: View,
    queries: NDArray[np.float32],
    options: SearchOptions,
    metric: int,
    *,
    with_vector: bool = False,
    check: Callable[[], None] = lambda: None,
    lap: Lap = untimed,
) -> Hits:
    """Finds each query's nearest live points.

    Args:
        view: the snapshot to search.
        queries: float32[nq, dim], raw and valid.
        options: how.
        metric: `Metric` number.
        with_vector: return the hits' vectors.
        check: called again and again, after steps of bounded length; raises to end the search.
        lap: called after each stage of each block.
    """
    plan = _Plan.of(view, options, metric, queries.shape[1], check, lap)
    length_max = exhaustive.length_max(view.parts, check) if options.exact and metric == types_pb2.METRIC_DOT else 0.0
    step = plan.queries_per_block()
    blocks = [_search_block(plan, queries[first : first + step], length_max) for first in range(0, len(queries), step)]
    found = blocks[0] if len(blocks) == 1 else Found.joined(blocks)
    hits = Hits(
        found.counts.astype(np.uint32),
        found.scores,
        view.parts.ids(found.rows) if len(found.rows) else [],
        _vectors(view, found.rows, queries.shape[1]) if with_vector else None,
    )
    lap("ids")
    return hits


def _search_block(plan: _Plan, queries: NDArray[np.float32], length_max: float) -> Found:
    view, metric = plan.view, plan.metric
    if view.live == 0:
        return Found(np.zeros(len(queries), np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    prepared = scoring.normalised(queries) if metric == types_pb2.METRIC_COSINE else np.ascontiguousarray(queries)
    candidates = [_compare_all(plan, part, prepared) for part in plan.compared]
    if candidates:
        plan.lap("compare")
    for group in plan.encoded:
        # One codebook: approximate distances of several segments can be compared, so only the best of all are read.
        chosen = _best_of_all(_scan(plan, group, prepared), plan.wanted_of_codes)
        candidates += [_compare_again(plan, one, prepared) for one in chosen]
        plan.lap("rerank")
    found, beyond = rank(view.parts, candidates, queries, plan.options.k, plan.wanted, metric, plan.check)
    if plan.options.exact and view.live > plan.wanted:
        found = _corrected(plan, found, queries, exhaustive.undecided(found, beyond, queries, metric, length_max))
    plan.lap("rank")
    return found


def _corrected(plan: _Plan, found: Found, queries: NDArray[np.float32], undecided: NDArray[np.int64]) -> Found:
    """The same with the hits of `undecided` queries found in float64."""
    ends = np.cumsum(found.counts)[:-1]
    scores, rows = np.split(found.scores, ends), np.split(found.rows, ends)
    for number in undecided:
        scores[number], rows[number] = exhaustive.nearest(
            plan.view.parts, queries[number], plan.options.k, plan.metric, plan.check
        )
    return Found(found.counts, np.concatenate(scores), np.concatenate(rows)) if len(undecided) else found


def _vectors(view: View, rows: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    return view.parts.vectors(rows) if len(rows) else np.empty((0, dim), np.float32)


def _few_rows(view: View, dim: int) -> bool:
    return (view.narrowed or view.coded <= EXACT_ROWS) and view.coded * 4 * dim <= EXACT_BYTES


def _compare_all(plan: _Plan, part: Part, prepared: NDArray[np.float32]) -> Candidates:
    metric = plan.metric
    wanted = min(plan.wanted, part.live.live)
    if part.live.live * _SPARSE < part.rows:
        return _compare_gathered(plan, part, prepared)
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    step = comparing.rows_per_step(prepared.shape[1])
    for first in range(0, part.rows, step):
        last = min(part.rows, first + step)
        live = part.live.between(first, last)
        if not live.live:
            continue
        distances, found = comparing.nearest_rows(
            prepared, part.prepared(slice(first, last)), min(wanted, live.live), metric, live, plan.check
        )
        absent = found < 0
        keys = np.concatenate((keys, np.where(absent, np.inf, scoring.ascending_key(distances, metric))), axis=1)
        rows = np.concatenate((rows, np.where(absent, -1, found + first)), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = smallest(keys, rows, wanted)
    return Candidates(part, keys, rows)


def _compare_gathered(plan: _Plan, part: Part, prepared: NDArray[np.float32]) -> Candidates:
    """The same for few live rows of many: their vectors are copied together first."""
    metric = plan.metric
    wanted = min(plan.wanted, part.live.live)
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    alive = part.live.live_rows()
    step = comparing.rows_per_step(prepared.shape[1])
    for first in range(0, len(alive), step):
        some = alive[first : first + step]
        distances, found = comparing.nearest_rows(
            prepared, part.prepared(some), min(wanted, len(some)), metric, LiveRows.all_of(len(some)), plan.check
        )
        keys = np.concatenate((keys, scoring.ascending_key(distances, metric)), axis=1)
        rows = np.concatenate((rows, some[found]), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = smallest(keys, rows, wanted)
    return Candidates(part, keys, rows)


def _scan(plan: _Plan, group: Encoded, prepared: NDArray[np.float32]) -> list[Candidates]:
    """Candidates of the codes of one codebook: at least k for each query, where so many rows may be found."""
    if not group.flat:
        return _visit_lists(plan, group, prepared)
    scanned = [_read_codes(plan, part, prepared, _NO_LISTS) for part in group.flat]
    plan.lap("scan")
    return scanned + _visit_lists(plan, group, prepared) if group.listed else scanned


def _visit_lists(plan: _Plan, group: Encoded, prepared: NDArray[np.float32]) -> list[Candidates]:
    wanted, codebook, filtered = plan.wanted_of_codes, group.codebook, plan.view.narrowed
    nprobe = plan.options.nprobe or codebook.default_nprobe * (_FILTERED_LISTS if filtered else 1)
    visit = probing.rows_to_visit(wanted, group.live, nprobe, codebook.nlist)
    per_list: NDArray[np.int64] | None = None
    plan.check()
    # Under DOT the lists that a query chooses are those of long vectors: often the smallest of all.
    if filtered or plan.metric == types_pb2.METRIC_DOT:
        per_list = _rows_per_list(group)
        lists = probing.nearest_lists(codebook, prepared, per_list, visit, nprobe)
    else:
        lists = codebook.assign(prepared, nprobe)
    while True:
        plan.lap("lists")
        scanned = []
        found = np.zeros(len(prepared), np.int64)
        for part in group.listed:
            candidates = _read_codes(plan, part, prepared, lists)
            found += (candidates.rows >= 0).sum(axis=1)
            scanned.append(candidates)
        plan.lap("scan")
        everywhere = per_list is not None and visit >= int(per_list.sum())
        if everywhere or int(found.min()) >= min(plan.options.k, group.live):
            return scanned
        # The nearest lists hold too few rows that may be found: more lists, until there are k or no lists are left.
        if per_list is None:
            per_list = _rows_per_list(group)
        else:
            visit *= _WIDEN
        lists = probing.nearest_lists(codebook, prepared, per_list, visit, nprobe)


def _read_codes(plan: _Plan, part: Part, prepared: NDArray[np.float32], lists: index.Rows) -> Candidates:
    assert part.index is not None
    wanted = min(plan.wanted_of_codes, part.live.live)
    distances, rows = part.index.scan(prepared, lists, wanted, part.live, plan.check)
    keys = scoring.ascending_key(distances, plan.metric)
    keys[rows < 0] = np.inf
    return Candidates(part, keys, rows)


def _rows_per_list(group: Encoded) -> NDArray[np.int64]:
    counts = []
    for part in group.listed:
        assert part.index is not None
        if part.passing is None:
            counts.append(part.index.rows_per_list(None))
        else:
            counts.append(part.passing.per_list(part.index))
    total: NDArray[np.int64] = np.sum(counts, axis=0)
    return total


def _best_of_all(scanned: list[Candidates], wanted: int) -> list[Candidates]:
    if len(scanned) == 1:
        return scanned
    keys = np.concatenate([candidates.keys for candidates in scanned], axis=1)
    if keys.shape[1] <= wanted:
        return scanned
    bound = np.partition(keys, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    return [Candidates(one.part, one.keys, np.where(one.keys <= bound, one.rows, -1)) for one in scanned]


def _compare_again(plan: _Plan, candidates: Candidates, prepared: NDArray[np.float32]) -> Candidates:
    part, rows = candidates.part, candidates.rows
    vectors = part.comparable
    if isinstance(vectors, RawVectors):  # FAISS reads the rows through the mapping: here they are verified
        vectors = vectors.holding(rows, plan.check)
    scores = comparing.compare_rows(prepared, vectors, rows, plan.metric, plan.check)
    if part.lengths is not None:
        lengths = part.lengths[np.maximum(rows, 0)]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    keys = scoring.ascending_key(scores, plan.metric)
    keys[rows < 0] = np.inf
    return Candidates(part, keys, rows)
