"""The parts of a view that a search goes through: rows of segments and of buffers, alike, and numbered through.

A row's number in the view is its number in its part behind the rows of the parts before. So what a search finds is one array of
numbers, whichever part it comes from, and nearly always there is one part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_server.engine.bitmap import LiveRows
from shard_server.engine.index import SegmentIndex
from shard_server.engine.passing import Passing
from shard_server.engine.raw_vectors import RawVectors


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows that can be found: of a segment, or those of a buffer that have codes, or those that have none yet."""

    first: int
    """The number of its first row in the view."""
    vectors: NDArray[np.float32] | RawVectors
    """float32[rows, dim], raw."""
    live: LiveRows
    ids_of: Callable[[NDArray[np.int64]], list[bytes]]
    prepared: Callable[[slice | NDArray[np.int64]], NDArray[np.float32]]
    """Rows as the metric compares them."""
    comparable: NDArray[np.float32] | RawVectors
    """float32[rows, dim]: all rows in place, as the metric compares them but for `lengths`."""
    lengths: NDArray[np.float32] | None = None
    """float32[rows] norms, of a segment under COSINE: `comparable` is raw there."""
    index: SegmentIndex | None = None
    """The codes of all rows, where they have some."""
    codebook_version: int = 0
    """What `index` is encoded with."""
    passing: Passing | None = None
    """Of a segment: the rows that pass the view's filter, where it has one."""

    @property
    def rows(self) -> int:
        """Rows, alive or dead."""
        return len(self.vectors)

    def numbered(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Its rows as the view numbers them; -1 stays."""
        return np.where(rows < 0, -1, rows + self.first) if self.first else rows


class Parts:
    """The parts that hold live rows, in the view's order."""

    def __init__(self, each: Sequence[Part]) -> None:
        self.each = tuple(each)
        self._firsts = np.asarray([part.first for part in each], np.int64)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The raw vectors of rows by their numbers in the view (int64[n]), float32[n, dim]: a copy."""
        if len(self.each) == 1:
            alone: NDArray[np.float32] = self.each[0].vectors[rows - self.each[0].first]
            return alone
        vectors = np.empty((len(rows), self.each[0].vectors.shape[1]), np.float32)
        for part, mine in self._split(rows):
            vectors[mine] = part.vectors[rows[mine] - part.first]
        return vectors

    def ids(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The ids of rows by their numbers in the view, as UTF-8."""
        if len(self.each) == 1:
            return self.each[0].ids_of(rows - self.each[0].first)
        found: NDArray[np.object_] = np.empty(len(rows), object)
        for part, mine in self._split(rows):
            found[mine] = part.ids_of(rows[mine] - part.first)
        ids: list[bytes] = found.tolist()
        return ids

    def _split(self, rows: NDArray[np.int64]) -> list[tuple[Part, NDArray[np.int64]]]:
        """Each part with the positions of its rows, where it has any."""
        part_of = np.searchsorted(self._firsts, rows, side="right") - 1
        return [(self.each[number], np.flatnonzero(part_of == number)) for number in np.unique(part_of).tolist()]
