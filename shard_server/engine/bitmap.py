"""Which rows are alive: immutable packed bitmaps, replaced whole when rows die.

A search keeps the bitmap of its snapshot while later writes install new ones, so that it never sees half a write. Copying
is cheap: a million rows are 122 KiB. Bit `row` lives in byte `row >> 3`, low bits first, as FAISS's IDSelectorBitmap reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LiveRows:
    """The live rows of a segment or buffer of `rows` rows."""

    rows: int
    live: int
    """How many of them are alive."""
    bits: NDArray[np.uint8] | None
    """uint8[ceil(rows / 8)]; None: every row is alive."""

    @classmethod
    def all_of(cls, rows: int) -> LiveRows:
        """All rows alive."""
        return cls(rows, rows, None)

    @property
    def dead(self) -> int:
        """How many rows are not."""
        return self.rows - self.live

    @property
    def nbytes(self) -> int:
        """Heap bytes of the bitmap."""
        return 0 if self.bits is None else self.bits.nbytes

    def without(self, rows: NDArray[np.int64]) -> LiveRows:
        """The same less `rows` (int64[n]); rows that are dead already stay so."""
        if len(rows) == 0:
            return self
        bits = np.full((self.rows + 7) // 8, 0xFF, np.uint8) if self.bits is None else self.bits.copy()
        np.bitwise_and.at(bits, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        return LiveRows(self.rows, _count(bits, self.rows), bits)

    def among(self, others: NDArray[np.uint8]) -> LiveRows:
        """The same less the rows that `others` (a bitmap like `bits`) lacks."""
        bits = others if self.bits is None else others & self.bits
        return LiveRows(self.rows, _count(bits, self.rows), bits)

    def between(self, first: int, last: int) -> LiveRows:
        """The rows from `first`, a multiple of 8, to before `last`, numbered anew."""
        if self.bits is None:
            return LiveRows.all_of(last - first)
        bits = self.bits[first >> 3 : (last + 7) >> 3]
        return LiveRows(last - first, _count(bits, last - first), bits)

    def extended(self, rows: int) -> LiveRows:
        """The same with further rows, all alive, up to `rows`."""
        if self.bits is None:
            return LiveRows(rows, rows, None)
        bits = np.full((rows + 7) // 8, 0xFF, np.uint8)
        bits[: len(self.bits)] = self.bits
        if self.rows & 7:
            bits[self.rows >> 3] |= np.uint8(0xFF << (self.rows & 7) & 0xFF)
        return LiveRows(rows, rows - self.dead, bits)

    def mask(self) -> NDArray[np.bool_]:
        """bool[rows]."""
        if self.bits is None:
            return np.ones(self.rows, np.bool_)
        bits: NDArray[np.uint8] = np.unpackbits(self.bits, count=self.rows, bitorder="little")
        mask: NDArray[np.bool_] = bits.astype(np.bool_)
        return mask

    def live_rows(self) -> NDArray[np.int64]:
        """int64[live], ascending."""
        if self.bits is None:
            return np.arange(self.rows)
        # Few rows of many: look only into bytes that hold any.
        occupied = np.flatnonzero(self.bits)
        inside, bit = np.nonzero(np.unpackbits(self.bits[occupied, None], axis=1, bitorder="little"))
        rows = occupied[inside] * 8 + bit
        return rows[: int(np.searchsorted(rows, self.rows))]

    def is_live(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[n]: whether each of `rows` (int64[n]) is alive."""
        if self.bits is None:
            return np.ones(len(rows), np.bool_)
        alive: NDArray[np.bool_] = ((self.bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1).astype(np.bool_)
        return alive


def _count(bits: NDArray[np.uint8], rows: int) -> int:
    whole = rows >> 3
    count = int(np.bitwise_count(bits[:whole]).sum())
    if rows & 7:
        count += int(bits[whole] & ((1 << (rows & 7)) - 1)).bit_count()
    return count
