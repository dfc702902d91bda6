"""The parts of a view that a search goes through: rows of segments and of buffers, alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_server.engine.bitmap import LiveRows
from shard_server.engine.raw_vectors import RawVectors
from shard_server.engine.view import View


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that can be found: of a segment or of a buffer."""

    vectors: NDArray[np.float32] | RawVectors
    """float32[rows, dim], raw."""
    live: LiveRows
    ids_of: Callable[[NDArray[np.int64]], list[bytes]]
    prepared: Callable[[slice | NDArray[np.int64]], NDArray[np.float32]]
    """Rows as the metric compares them."""
    lengths: NDArray[np.float32] | None = None
    """float32[rows] norms, of a segment under COSINE."""

    @property
    def rows(self) -> int:
        """Rows, alive or dead."""
        return len(self.vectors)


def parts_of(view: View) -> list[Part]:
    """The segments of a view, in its order, then its buffers."""
    sealed = [
        Part(piece.segment.vectors, piece.live, piece.segment.ids.many, piece.segment.prepared, piece.segment.lengths)
        for piece in view.segments
    ]
    return sealed + [Part(buffer.vectors, buffer.live, buffer.ids_of, buffer.prepared_rows) for buffer in view.buffers]


@dataclass(frozen=True, slots=True)
class Places:
    """Rows of several parts."""

    part_of: NDArray[np.int32]
    """int32[n]: positions in a list of parts."""
    rows: NDArray[np.int64]
    """int64[n]: the row of each within its part."""

    def __getitem__(self, which: slice | NDArray[np.int64]) -> Places:
        return Places(self.part_of[which], self.rows[which])

    @classmethod
    def joined(cls, pieces: list[Places]) -> Places:
        """Those of `pieces`, one after another."""
        return cls(
            np.concatenate([np.empty(0, np.int32), *(piece.part_of for piece in pieces)]),
            np.concatenate([np.empty(0, np.int64), *(piece.rows for piece in pieces)]),
        )

    def vectors(self, parts: list[Part], dim: int) -> NDArray[np.float32]:
        """The raw vectors, float32[n, dim]: a copy."""
        only = self._only()
        if only is not None:
            alone: NDArray[np.float32] = parts[only].vectors[self.rows]
            return alone
        vectors = np.empty((len(self.rows), dim), np.float32)
        for number in np.unique(self.part_of):
            mine = self.part_of == number
            vectors[mine] = parts[number].vectors[self.rows[mine]]
        return vectors

    def ids(self, parts: list[Part]) -> list[bytes]:
        """The ids, as UTF-8."""
        only = self._only()
        if only is not None:
            return parts[only].ids_of(self.rows)
        found: NDArray[np.object_] = np.empty(len(self.rows), object)
        for number in np.unique(self.part_of):
            mine = self.part_of == number
            found[mine] = parts[number].ids_of(self.rows[mine])
        ids: list[bytes] = found.tolist()
        return ids

    def _only(self) -> int | None:
        """The one part that all are of, as is usual: of one large segment."""
        return int(self.part_of[0]) if len(self.rows) and bool((self.part_of == self.part_of[0]).all()) else None
