"""The search over one view of a replica.

1. Candidates: encoded segments through their IVF-PQ codes (each query assigned to lists once per codebook), the rest
   (buffers, segments without codes, everything when `exact` or when a filter leaves little) by comparing every row.
2. The candidates of the codes are compared again on raw vectors, in float32.
3. The best k and some spare ones are scored in float64 (see `scoring`) and put in their final order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import index, probing, scoring
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.view import SegmentView, View
from vectorfleet.limits import CANDIDATES_MAX, OVERSAMPLE_DEFAULT
from vectorfleet.v1 import types_pb2

_SPARE: Final = 8
"""Candidates beyond k that the float64 pass sees: float32 rounding near the k-th place must not decide."""
_EXACT_ROWS_PER_STEP: Final = 65_536
_GATHER_BYTES_PER_STEP: Final = 8 << 20
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
    vectors: NDArray[np.float32]
    """float32[sum(counts), dim], raw."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that can be found: of a segment or of a buffer."""

    vectors: NDArray[np.float32]
    live: LiveRows
    id_of: Callable[[int], bytes]
    prepared: Callable[[slice | NDArray[np.int64]], NDArray[np.float32]]
    """Rows as the metric compares them."""
    lengths: NDArray[np.float32] | None = None
    """float32[rows] norms, of a segment under COSINE."""

    @property
    def rows(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Rows of one part for each query, with float32 keys (smaller is better; infinite where there is none)."""

    part: int
    keys: NDArray[np.float32]
    rows: NDArray[np.int64]


def search(
    view: View,
    queries: NDArray[np.float32],
    options: SearchOptions,
    metric: int,
) -> Hits:
    """Finds each query's nearest live points.

    Args:
        view: the snapshot to search.
        queries: float32[nq, dim], raw and valid.
        options: how.
        metric: `Metric` number.
    """
    prepared = scoring.normalised(queries) if metric == types_pb2.METRIC_COSINE else np.ascontiguousarray(queries)
    parts = _parts(view)
    encoded = {} if options.exact or _few_pass(view, queries.shape[1]) else _encoded(view)
    wanted = options.k + _SPARE
    while True:
        candidates = [
            _compare_all(part_number, parts[part_number], prepared, min(wanted, parts[part_number].live.live), metric)
            for part_number in range(len(parts))
            if part_number not in encoded and parts[part_number].live.live
        ]
        candidates += _from_codes(view, parts, encoded, prepared, options, metric)
        hits, cut_in_a_tie = _finish(parts, candidates, queries, options.k, wanted, metric)
        if not (options.exact and cut_in_a_tie) or wanted >= view.live:
            return hits
        # Equal scores reach beyond the spare candidates: the order by id is only known once all of them are seen.
        wanted *= 4


def _parts(view: View) -> list[_Part]:
    sealed = [
        _Part(piece.segment.vectors, piece.live, piece.segment.id_of, piece.segment.prepared, piece.segment.lengths)
        for piece in view.segments
    ]
    return sealed + [
        _Part(buffer.vectors, buffer.live, buffer.ids.__getitem__, buffer.prepared_rows) for buffer in view.buffers
    ]


def _encoded(view: View) -> dict[int, SegmentView]:
    return {
        number: piece
        for number, piece in enumerate(view.segments)
        if piece.segment.index is not None and piece.live.live
    }


def _few_pass(view: View, dim: int) -> bool:
    passing = [piece.live.live for piece in view.segments if piece.passing is not None]
    return bool(passing) and sum(passing) * 4 * dim <= FILTERED_EXACT_BYTES


def _compare_all(number: int, part: _Part, prepared: NDArray[np.float32], wanted: int, metric: int) -> _Candidates:
    if part.live.live * _SPARSE < part.rows:
        return _compare_gathered(number, part, prepared, wanted, metric)
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    step = part.rows if metric != types_pb2.METRIC_COSINE else _EXACT_ROWS_PER_STEP
    for first in range(0, part.rows, step):
        last = min(part.rows, first + step)
        live = (
            part.live
            if step == part.rows
            else LiveRows.all_of(last - first).without(np.flatnonzero(~part.live.mask()[first:last]))
        )
        distances, found = index.nearest_rows(
            prepared, part.prepared(slice(first, last)), min(wanted, last - first), metric, live
        )
        absent = found < 0
        keys = np.concatenate((keys, np.where(absent, np.inf, scoring.ascending_key(distances, metric))), axis=1)
        rows = np.concatenate((rows, np.where(absent, -1, found + first)), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = _best(keys, rows, wanted)
    return _Candidates(number, keys, rows)


def _compare_gathered(number: int, part: _Part, prepared: NDArray[np.float32], wanted: int, metric: int) -> _Candidates:
    """The same for few live rows of many: their vectors are copied together first."""
    keys = np.empty((len(prepared), 0), np.float32)
    rows = np.empty((len(prepared), 0), np.int64)
    alive = part.live.live_rows()
    step = max(1, _GATHER_BYTES_PER_STEP // (4 * prepared.shape[1]))
    for first in range(0, len(alive), step):
        some = alive[first : first + step]
        distances, found = index.nearest_rows(
            prepared, part.prepared(some), min(wanted, len(some)), metric, LiveRows.all_of(len(some))
        )
        keys = np.concatenate((keys, scoring.ascending_key(distances, metric)), axis=1)
        rows = np.concatenate((rows, some[found]), axis=1)
        if keys.shape[1] > wanted:
            keys, rows = _best(keys, rows, wanted)
    return _Candidates(number, keys, rows)


def _from_codes(
    view: View,
    parts: list[_Part],
    encoded: dict[int, SegmentView],
    prepared: NDArray[np.float32],
    options: SearchOptions,
    metric: int,
) -> list[_Candidates]:
    oversample = options.oversample or OVERSAMPLE_DEFAULT
    wanted = max(options.k, min(int(options.k * oversample), CANDIDATES_MAX)) + _SPARE
    found: list[_Candidates] = []
    for version in sorted({piece.segment.codebook_version for piece in encoded.values()}):
        group = {number: piece for number, piece in encoded.items() if piece.segment.codebook_version == version}
        scanned = _scan(group, view.codebooks[version], prepared, wanted, options, metric)
        # One codebook: approximate distances of several segments can be compared, so only the best of all are read.
        found += [
            _compare_again(parts[chosen.part], chosen, prepared, metric) for chosen in _best_of_all(scanned, wanted)
        ]
    return found


def _scan(
    group: dict[int, SegmentView],
    codebook: index.Codebook,
    prepared: NDArray[np.float32],
    wanted: int,
    options: SearchOptions,
    metric: int,
) -> list[_Candidates]:
    """Candidates of the segments of one codebook: at least k for each query, where so many rows may be found."""
    live = sum(piece.live.live for piece in group.values())
    filtered = any(piece.passing for piece in group.values())
    nprobe = options.nprobe or codebook.default_nprobe * (_FILTERED_LISTS if filtered else 1)
    visit = probing.rows_to_visit(wanted, live, nprobe, codebook.nlist)
    per_list: NDArray[np.int64] | None = None
    if filtered:
        per_list = _rows_per_list(group.values())
        list_distances, lists = probing.nearest_lists(codebook, prepared, per_list, visit, nprobe)
    else:
        list_distances, lists = codebook.assign(prepared, nprobe)
    while True:
        scanned = []
        found = np.zeros(len(prepared), np.int64)
        for number, piece in group.items():
            assert piece.segment.index is not None
            distances, rows = piece.segment.index.scan(
                prepared, lists, list_distances, min(wanted, piece.live.live), piece.live
            )
            absent = rows < 0
            found += rows.shape[1] - absent.sum(axis=1)
            scanned.append(
                _Candidates(number, np.where(absent, np.inf, scoring.ascending_key(distances, metric)), rows)
            )
        everywhere = per_list is not None and visit >= int(per_list.sum())
        if everywhere or bool(np.all(found >= min(options.k, live))):
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


def _best_of_all(scanned: list[_Candidates], wanted: int) -> list[_Candidates]:
    if sum(candidates.keys.shape[1] for candidates in scanned) <= wanted:
        return scanned
    keys = np.concatenate([candidates.keys for candidates in scanned], axis=1)
    bound = np.partition(keys, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    return [_Candidates(part.part, part.keys, np.where(part.keys <= bound, part.rows, -1)) for part in scanned]


def _compare_again(part: _Part, candidates: _Candidates, prepared: NDArray[np.float32], metric: int) -> _Candidates:
    scores = index.compare_rows(prepared, part.vectors, candidates.rows, metric)
    if part.lengths is not None:
        lengths = part.lengths[np.maximum(candidates.rows, 0)]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return _Candidates(
        candidates.part, np.where(candidates.rows < 0, np.inf, scoring.ascending_key(scores, metric)), candidates.rows
    )


def _best(
    keys: NDArray[np.float32], rows: NDArray[np.int64], wanted: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chosen = np.argpartition(keys, wanted - 1, axis=1)[:, :wanted]
    return np.take_along_axis(keys, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)


def _finish(
    parts: list[_Part], candidates: list[_Candidates], queries: NDArray[np.float32], k: int, wanted: int, metric: int
) -> tuple[Hits, bool]:
    """Scores the best `wanted` of each query in float64 and keeps k; says whether a tie may reach beyond them."""
    nq, dim = queries.shape
    if not candidates:
        return Hits(np.zeros(nq, np.uint32), np.empty(0, np.float32), [], np.empty((0, dim), np.float32)), False
    keys = np.concatenate([group.keys for group in candidates], axis=1)
    rows = np.concatenate([group.rows for group in candidates], axis=1)
    part_of = np.concatenate([np.full(group.keys.shape[1], group.part, np.int32) for group in candidates])
    if keys.shape[1] > wanted:
        chosen = np.argpartition(keys, wanted - 1, axis=1)[:, :wanted]
        keys, rows, pair_part = (
            np.take_along_axis(keys, chosen, axis=1),
            np.take_along_axis(rows, chosen, axis=1),
            part_of[chosen],
        )
    else:
        pair_part = np.broadcast_to(part_of, rows.shape)
    there = rows >= 0
    query_of, _ = np.nonzero(there)
    flat_rows, flat_parts = rows[there], pair_part[there]
    vectors = np.empty((len(flat_rows), dim), np.float32)
    for number in np.unique(flat_parts):
        mine = flat_parts == number
        vectors[mine] = parts[number].vectors[flat_rows[mine]]
    scores = scoring.exact_scores(queries, query_of, vectors, metric)

    def id_of(position: int) -> bytes:
        part = parts[int(flat_parts[position])]
        return part.id_of(int(flat_rows[position]))

    order = scoring.best_first(query_of, scoring.ascending_key(scores, metric), id_of)
    available = np.bincount(query_of, minlength=nq)
    starts = np.cumsum(available) - available
    rank = np.arange(len(order)) - starts[query_of[order]]
    kept = order[rank < k]
    counts = np.minimum(available, k)
    full = available >= wanted
    last_seen, last_kept = starts + available - 1, starts + counts - 1
    cut_in_a_tie = (
        bool(np.any(full & (scores[order][np.maximum(last_seen, 0)] == scores[order][np.maximum(last_kept, 0)])))
        if len(order)
        else False
    )
    hits = Hits(counts.astype(np.uint32), scores[kept], [id_of(int(position)) for position in kept], vectors[kept])
    return hits, cut_in_a_tie
