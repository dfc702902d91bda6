"""A replica's newest points, not in a segment yet: searchable at once, readable while they grow.

Where there is a codebook whose codes need no lists, all but the newest rows are searched through codes, as sealed rows are:
comparing a row with a query costs seven times as much, and a buffer meets hundreds of queries a second. Codes come behind the
rows, a good part of them at a time, since a search reads the codes that its view has while more are made: see `Codes`.

`Buffer` is the writer's side, used by one thread at a time; `BufferView` is what a search sees. Rows are only ever appended,
and arrays that must grow are replaced, so that a view of the first n rows stays true without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import scoring
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.buffer_terms import BufferTerms
from shard_server.engine.index import Codebook, SegmentIndex
from shard_server.engine.matching import matching_rows
from vectorfleet.v1 import types_pb2

_ROWS_AT_FIRST = 256
_BYTES_PER_ROW_OF_PYTHON = 200
"""An id's string, its dictionary slot and its version: measured with tracemalloc, rounded up."""
_TERMS_BYTES_PER_PAYLOAD_BYTE = 2
"""Its JSON, and its values once a filter or the sealing has read them."""
_CODED_STEP = 1024
"""Fewer rows are compared one by one: as many comparisons cost about what reading codes costs at least."""
_COPIED_SHARE = 8
"""Rows that wait for their codes may be one in so many: old codes are copied each time, so that each is copied a few times."""
_CODED_MULTIPLE = 32
"""FastScan packs so many rows together."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of a buffer's first rows, of `index.rows` of them; immutable."""

    codebook: Codebook
    index: SegmentIndex


@dataclass(frozen=True, slots=True)
class BufferView:
    """The first `len(live)` rows of a buffer, as they were."""

    vectors: NDArray[np.float32]
    """float32[n, dim], raw."""
    prepared: NDArray[np.float32]
    """float32[n, dim]: normalised under COSINE, else the same array."""
    versions: NDArray[np.uint64]
    """uint64[n], ascending."""
    ids: Sequence[bytes]
    """At least n."""
    terms: BufferTerms
    live: LiveRows
    codes: Codes | None = None

    def passing(self, wanted: types_pb2.Filter) -> NDArray[np.uint8]:
        """The rows that pass a filter, alive or dead, as a bitmap like that of `live`."""
        masks = [matching_rows(wanted, block) for block in self.terms.of_rows(len(self.vectors))]
        mask = np.concatenate([np.empty(0, np.bool_), *masks])[: len(self.vectors)]
        return np.packbits(mask, bitorder="little")

    def ids_of(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The ids of many rows, as UTF-8."""
        return [self.ids[row] for row in rows.tolist()]

    def row_of_version(self, version: int) -> int:
        """The row that holds a version; -1 where none does."""
        row = int(np.searchsorted(self.versions, np.uint64(version)))
        return row if row < len(self.versions) and int(self.versions[row]) == version else -1


class Buffer:
    """Appends rows and marks them dead; `view` freezes what is there."""

    def __init__(self, dim: int, metric: int) -> None:
        self._metric = metric
        self._vectors = np.empty((_ROWS_AT_FIRST, dim), np.float32)
        self._prepared = np.empty_like(self._vectors) if metric == types_pb2.METRIC_COSINE else self._vectors
        self._versions = np.empty(_ROWS_AT_FIRST, np.uint64)
        self._ids: list[bytes] = []
        self._terms = BufferTerms()
        self._row_of: dict[bytes, int] = {}
        self._live = LiveRows.all_of(0)
        self.codes: Codes | None = None
        """Those made so far, by `encoded`; of no more rows than there are."""

    @property
    def rows(self) -> int:
        """Rows appended, alive or dead."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Heap bytes, about."""
        arrays = self._vectors.nbytes + self._versions.nbytes + self._live.nbytes
        if self._prepared is not self._vectors:
            arrays += self._prepared.nbytes
        if self.codes is not None:
            arrays += self.codes.index.rows * self.codes.codebook.code_bytes
        return arrays + self._terms.nbytes + self.rows * _BYTES_PER_ROW_OF_PYTHON

    def growth(self, rows: int, payload_bytes: int, code_bytes: int = 0) -> int:
        """Heap bytes that so many more rows would add, at most: arrays that must grow are doubled.

        Args:
            rows: to be added.
            payload_bytes: of all of them.
            code_bytes: of a row; what has no code yet may get it now.
        """
        uncoded = self.rows + rows - (0 if self.codes is None else self.codes.index.rows)
        capacity = wanted = len(self._vectors)
        while wanted < self.rows + rows:
            wanted *= 2
        row_bytes = (self._vectors.nbytes + self._versions.nbytes) // capacity
        if self._prepared is not self._vectors:
            row_bytes += self._prepared.nbytes // capacity
        return (
            (wanted - capacity) * row_bytes
            + rows * (_BYTES_PER_ROW_OF_PYTHON + 1)
            + _TERMS_BYTES_PER_PAYLOAD_BYTE * payload_bytes
            + uncoded * code_bytes
        )

    def append(
        self, ids: Sequence[bytes], vectors: NDArray[np.float32], payloads: Sequence[bytes], first_version: int
    ) -> None:
        """Adds rows (float32[n, dim]) with ascending versions; an older row of the same id dies."""
        first = self.rows
        self._reserve(first + len(ids))
        self._vectors[first : first + len(ids)] = vectors
        if self._prepared is not self._vectors:
            self._prepared[first : first + len(ids)] = scoring.normalised(vectors)
        self._versions[first : first + len(ids)] = np.arange(first_version, first_version + len(ids), dtype=np.uint64)
        dead = [row for point_id in ids if (row := self._row_of.get(point_id)) is not None]
        self._terms.append(payloads)
        self._ids.extend(ids)
        self._row_of.update(zip(ids, range(first, first + len(ids)), strict=True))
        self._live = self._live.without(np.asarray(dead, np.int64)).extended(self.rows)

    def kill(self, ids: Sequence[bytes]) -> list[bytes]:
        """Marks the rows of these ids as dead; returns the ids that have no row here."""
        dead, absent = [], []
        for point_id in ids:
            row = self._row_of.pop(point_id, None)
            if row is None:
                absent.append(point_id)
            else:
                dead.append(row)
        self._live = self._live.without(np.asarray(dead, np.int64))
        return absent

    def kill_rows(self, rows: NDArray[np.int64]) -> None:
        """Marks rows as dead, whatever their ids (for replaying a log whose later entries took effect before)."""
        self._live = self._live.without(rows)
        for row in rows:
            point_id = self._ids[row]
            if self._row_of.get(point_id) == row:
                del self._row_of[point_id]

    def __contains__(self, point_id: bytes) -> bool:
        return point_id in self._row_of

    def view(self) -> BufferView:
        """What is there now; stays as it is while the buffer grows."""
        rows = self.rows
        arrays = self._vectors[:rows], self._prepared[:rows], self._versions[:rows]
        return BufferView(*arrays, self._ids, self._terms, self._live, self.codes)

    def _reserve(self, rows: int) -> None:
        capacity = len(self._vectors)
        if rows <= capacity:
            return
        while capacity < rows:
            capacity *= 2
        shared = self._prepared is self._vectors
        self._vectors = _grown(self._vectors, capacity)
        self._prepared = self._vectors if shared else _grown(self._prepared, capacity)
        self._versions = _grown(self._versions, capacity)


def encoded(view: BufferView, codebook: Codebook) -> Codes | None:
    """Codes of more rows than `view` has codes of, where enough rows wait for theirs; else None. Takes milliseconds."""
    codes = view.codes if view.codes is not None and view.codes.codebook.version == codebook.version else None
    first = 0 if codes is None else codes.index.rows
    last = len(view.vectors) - len(view.vectors) % _CODED_MULTIPLE
    if not codebook.codes_alone or last - first < max(_CODED_STEP, first // _COPIED_SHARE):
        return None
    before = None if codes is None else codes.index
    return Codes(codebook, SegmentIndex.flat(codebook, [view.prepared[first:last]], before))


def _grown(old: NDArray[Any], capacity: int) -> NDArray[Any]:
    new = np.empty((capacity, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new
