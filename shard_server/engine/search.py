"""The search over one view of a replica.

1. Candidates: encoded segments through their IVF-PQ codes (each query assigned to lists once per codebook), the rest
   (buffers, segments without codes, everything when `exact` or when a filter leaves little) by comparing every row.
2. The candidates of the codes are compared again on raw vectors, in float32.
3. The best k and some spare ones are scored in float64 and put in their final order (see `ranking`).
4. When `exact`, queries of which a row beyond the spare ones may be among the best are compared in float64 (see `exhaustive`).

A batch is worked on in blocks of queries, and a block in steps: its memory is bounded, and between steps it is asked whether to
go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import exhaustive, index, probing, scoring
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.parts import Part, Places, parts_of
from shard_server.engine.ranking import Candidates, Found, rank, smallest
from shard_server.engine.stages import Lap, untimed
from shard_server.engine.view import SegmentView, View
from vectorfleet.limits import CANDIDATES_MAX, OVERSAMPLE_DEFAULT
from vectorfleet.v1 import types_pb2

_SPARE: Final = 8
"""Candidates beyond k that the float64 pass sees, at least: float32 rounding near the k-th place must not decide."""
_BLOCK_BYTES: Final = 64 << 20
_CANDIDATE_BYTES: Final = 64
"""A candidate's key and row, and their copies on the way to the final order."""
_LIST_BYTES: Final = 24
"""A list's distance and number for one query, and their copies."""
_SPARSE: Final = 8
"""Where fewer than one row in so many may be found, these rows are gathered instead of testing all."""
FILTERED_EXACT_BYTES: Final = 8 << 20
"""Raw vectors that a filter may leave for them to be compared one by one: that costs about what visiting the lists would."""
_FILTERED_LISTS: Final = 2
"""Times as many lists are visited under a filter by default: what passes may be far, and is then spread over more of them."""
_WIDEN: Final = 4


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
    parts: list[Part]
    encoded: dict[int, SegmentView]
    """By position in `parts`: those that are searched through their codes."""
    versions: list[int]
    """The codebooks of `encoded`."""
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
        encoded = {} if options.exact or _few_pass(view, dim) else _encoded(view)
        versions = sorted({piece.segment.codebook_version for piece in encoded.values()})
        wanted = options.k + max(_SPARE, options.k // 8)
        oversample = options.oversample or OVERSAMPLE_DEFAULT
        wanted_of_codes = max(wanted, min(int(options.k * oversample), CANDIDATES_MAX) + _SPARE)
        return cls(view, parts_of(view), encoded, versions, options, metric, wanted, wanted_of_codes, check, lap)

    def queries_per_block(self) -> int:
        """So many that what is kept of them stays within `_BLOCK_BYTES`."""
        candidates = sum(
            min(part.live.live, self.wanted_of_codes if number in self.encoded else self.wanted)
            for number, part in enumerate(self.parts)
        )
        lists = max((self.view.codebooks[version].nlist for version in self.versions), default=0)
        return max(1, _BLOCK_BYTES // max(1, _CANDIDATE_BYTES * candidates + _LIST_BYTES * lists))


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
    length_max = exhaustive.length_max(plan.parts, check) if options.exact and metric == types_pb2.METRIC_DOT else 0.0
    step = plan.queries_per_block()
    blocks = [_search_block(plan, queries[first : first + step], length_max) for first in range(0, len(queries), step)]
    found = blocks[0] if len(blocks) == 1 else Found.joined(blocks)
    hits = Hits(
        found.counts.astype(np.uint32),
        found.scores,
        found.places.ids(plan.parts),
        found.places.vectors(plan.parts, queries.shape[1]) if with_vector else None,
    )
    lap("ids")
    return hits


def _search_block(plan: _Plan, queries: NDArray[np.float32], length_max: float) -> Found:
    parts, k, metric = plan.parts, plan.options.k, plan.metric
    if plan.view.live == 0:
        return Found(np.zeros(len(queries), np.int64), np.empty(0, np.float32), Places.joined([]))
    prepared = scoring.normalised(queries) if metric == types_pb2.METRIC_COSINE else np.ascontiguousarray(queries)
    candidates = [
        _compare_all(plan, number, prepared)
        for number, part in enumerate(parts)
        if number not in plan.encoded and part.live.live
    ]
    if candidates:
        plan.lap("compare")
    candidates += _from_codes(plan, prepared)
    found, beyond = rank(parts, candidates, queries, k, plan.wanted, metric, plan.check)
    if plan.options.exact and plan.view.live > plan.wanted:
        found = _corrected(plan, found, queries, exhaustive.undecided(found, beyond, queries, metric, length_max))
    plan.lap("rank")
    return found


def _corrected(plan: _Plan, found: Found, queries: NDArray[np.float32], undecided: NDArray[np.int64]) -> Found:
    """The same with the hits of `undecided` queries found in float64."""
    ends = np.cumsum(found.counts)
    scores = np.split(found.scores, ends[:-1])
    places = [found.places[slice(end - count, end)] for count, end in zip(found.counts, ends, strict=True)]
    for number in undecided:
        scores[number], places[number] = exhaustive.nearest(
            plan.parts, queries[number], plan.options.k, plan.metric, plan.check
        )
    return Found(found.counts, np.concatenate(scores), Places.joined(places)) if len(undecided) else found


def _encoded(view: View) -> dict[int, SegmentView]:
    return {
        number: piece
        for number, piece in enumerate(view.segments)
        if piece.segment.index is not None and piece.live.live
    }


def _few_pass(view: View, dim: int) -> bool:
    passing = [piece.live.live for piece in view.segments if piece.passing is not None]
    return bool(passing) and sum(passing) * 4 * dim <= FILTERED_EXACT_BYTES


def _compare_all(plan: _Plan, number: int, prepared: NDArray[np.float32]) -> Candidates:
    part, metric = plan.parts[number], plan.metric
    wanted = min(plan.wanted, part.live.live)
    if part.live.live * _SPARSE < part.rows:
        return _compare_gathered(plan, number, prepared)
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    step = index.rows_per_step(prepared.shape[1])
    for first in range(0, part.rows, step):
        last = min(part.rows, first + step)
        live = part.live.between(first, last)
        if not live.live:
            continue
        distances, found = index.nearest_rows(
            prepared, part.prepared(slice(first, last)), min(wanted, live.live), metric, live, plan.check
        )
        absent = found < 0
        keys = np.concatenate((keys, np.where(absent, np.inf, scoring.ascending_key(distances, metric))), axis=1)
        rows = np.concatenate((rows, np.where(absent, -1, found + first)), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = smallest(keys, rows, wanted)
    return Candidates(number, keys, rows)


def _compare_gathered(plan: _Plan, number: int, prepared: NDArray[np.float32]) -> Candidates:
    """The same for few live rows of many: their vectors are copied together first."""
    part, metric = plan.parts[number], plan.metric
    wanted = min(plan.wanted, part.live.live)
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    alive = part.live.live_rows()
    step = index.rows_per_step(prepared.shape[1])
    for first in range(0, len(alive), step):
        some = alive[first : first + step]
        distances, found = index.nearest_rows(
            prepared, part.prepared(some), min(wanted, len(some)), metric, LiveRows.all_of(len(some)), plan.check
        )
        keys = np.concatenate((keys, scoring.ascending_key(distances, metric)), axis=1)
        rows = np.concatenate((rows, some[found]), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = smallest(keys, rows, wanted)
    return Candidates(number, keys, rows)


def _from_codes(plan: _Plan, prepared: NDArray[np.float32]) -> list[Candidates]:
    found: list[Candidates] = []
    for version in plan.versions:
        group = {number: piece for number, piece in plan.encoded.items() if piece.segment.codebook_version == version}
        scanned = _scan(plan, group, plan.view.codebooks[version], prepared)
        # One codebook: approximate distances of several segments can be compared, so only the best of all are read.
        found += [_compare_again(plan, chosen, prepared) for chosen in _best_of_all(scanned, plan.wanted_of_codes)]
        plan.lap("rerank")
    return found


def _scan(
    plan: _Plan, group: dict[int, SegmentView], codebook: index.Codebook, prepared: NDArray[np.float32]
) -> list[Candidates]:
    """Candidates of the segments of one codebook: at least k for each query, where so many rows may be found."""
    wanted = plan.wanted_of_codes
    live = sum(piece.live.live for piece in group.values())
    filtered = any(piece.passing for piece in group.values())
    nprobe = plan.options.nprobe or codebook.default_nprobe * (_FILTERED_LISTS if filtered else 1)
    visit = probing.rows_to_visit(wanted, live, nprobe, codebook.nlist)
    per_list: NDArray[np.int64] | None = None
    plan.check()
    # Under DOT the lists that a query chooses are those of long vectors: often the smallest of all.
    if filtered or plan.metric == types_pb2.METRIC_DOT:
        per_list = _rows_per_list(group.values())
        list_distances, lists = probing.nearest_lists(codebook, prepared, per_list, visit, nprobe)
    else:
        list_distances, lists = codebook.assign(prepared, nprobe)
    while True:
        plan.lap("lists")
        scanned = []
        found = np.zeros(len(prepared), np.int64)
        for number, piece in group.items():
            assert piece.segment.index is not None
            distances, rows = piece.segment.index.scan(
                prepared, lists, list_distances, min(wanted, piece.live.live), piece.live, plan.check
            )
            absent = rows < 0
            found += rows.shape[1] - absent.sum(axis=1)
            keys = np.where(absent, np.inf, scoring.ascending_key(distances, plan.metric))
            scanned.append(Candidates(number, keys, rows))
        plan.lap("scan")
        everywhere = per_list is not None and visit >= int(per_list.sum())
        if everywhere or bool(np.all(found >= min(plan.options.k, live))):
            return scanned
        # The nearest lists hold too few rows that may be found: more lists, until there are k or no lists are left.
        if per_list is None:
            per_list = _rows_per_list(group.values())
        else:
            visit *= _WIDEN
        list_distances, lists = probing.nearest_lists(codebook, prepared, per_list, visit, nprobe)


def _rows_per_list(group: Iterable[SegmentView]) -> NDArray[np.int64]:
    counts = []
    for piece in group:
        assert piece.segment.index is not None
        if piece.passing is None:
            counts.append(piece.segment.index.rows_per_list(None))
        else:
            counts.append(piece.passing.per_list(piece.segment.index))
    total: NDArray[np.int64] = np.sum(counts, axis=0)
    return total


def _best_of_all(scanned: list[Candidates], wanted: int) -> list[Candidates]:
    if sum(candidates.keys.shape[1] for candidates in scanned) <= wanted:
        return scanned
    keys = np.concatenate([candidates.keys for candidates in scanned], axis=1)
    bound = np.partition(keys, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    return [Candidates(part.part, part.keys, np.where(part.keys <= bound, part.rows, -1)) for part in scanned]


def _compare_again(plan: _Plan, candidates: Candidates, prepared: NDArray[np.float32]) -> Candidates:
    segment = plan.encoded[candidates.part].segment
    # FAISS reads the rows through the mapping: here they are verified.
    vectors = segment.vectors.holding(candidates.rows, plan.check)
    scores = index.compare_rows(prepared, vectors, candidates.rows, plan.metric, plan.check)
    if segment.lengths is not None:
        lengths = segment.lengths[np.maximum(candidates.rows, 0)]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    keys = np.where(candidates.rows < 0, np.inf, scoring.ascending_key(scores, plan.metric))
    return Candidates(candidates.part, keys, candidates.rows)
