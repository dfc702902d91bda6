"""A segment's raw vectors, mapped from their file: each block of rows is compared with its checksum before one is first used.

They are most of the bytes of a replica, too many to read when it is opened. So the file `sums` beside them has a checksum of
every block of rows, and a block is read, once, when one of its rows is first asked for; a background pass reads the rest.

    vectors   header, float32[rows, dim]           a block: as many whole rows as 16 KiB hold; the first has the header, too
    sums      header, XXH3-64 of each block        derived: made anew of vectors that match the checksum of their whole file

Blocks are read through a descriptor, not through the mapping: what a device cannot read is then an error that names the file,
where touching a mapped page would end the process; the interpreter runs on meanwhile; and the pages are in memory afterwards.

Invariant: nobody but this module has the mapping, and it gives out no row of a block that was not found whole since the file
was opened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from shard_server.engine import files
from vectorfleet.errors import DataLoss

BLOCK_BYTES: Final = 16 << 10
_READ_BLOCKS: Final = 64
"""Neighbours that are read at once."""
_HINTED_READS: Final = 256
"""So many reads are announced to the system before the first of them is waited for: a disk does many at a time."""
Rows = NDArray[np.int64]


def rows_per_block(dim: int) -> int:
    """How many rows a block of a new segment has."""
    return max(1, BLOCK_BYTES // (4 * dim))


class BlockSums:
    """Computes the checksums of blocks while a file's bytes pass by, header first."""

    def __init__(self, dim: int) -> None:
        """Of no bytes yet. `dim`: components of a row."""
        self._block_bytes = rows_per_block(dim) * 4 * dim
        self._missing = files.HEADER_BYTES + self._block_bytes
        self._digest = xxhash.xxh3_64()
        self._sums: list[int] = []

    def add(self, part: bytes | memoryview) -> None:
        """The file's next bytes."""
        rest = memoryview(part).cast("B")
        while rest.nbytes:
            piece = rest[: self._missing]
            self._digest.update(piece)
            rest = rest[piece.nbytes :]
            self._missing -= piece.nbytes
            if not self._missing:
                self._end_block()

    def _end_block(self) -> None:
        self._sums.append(self._digest.intdigest())
        self._digest.reset()
        self._missing = self._block_bytes

    def finish(self) -> bytes:
        """The sums, one after another, as little-endian uint64."""
        if self._missing < self._block_bytes:
            self._end_block()
        return np.asarray(self._sums, "<u8").tobytes()


class RawVectors:
    """float32[rows, dim]. Thread-safe; stays readable once the file is unlinked."""

    def __init__(self, path: Path, matrix: NDArray[np.float32], sums: NDArray[np.uint64], block_rows: int) -> None:
        """Opens the file once more, and reads nothing.

        Args:
            path: the file.
            matrix: float32[rows, dim], its mapped content behind the header.
            sums: uint64[blocks], checked.
            block_rows: rows of a block.

        Raises:
            DataLoss: the file cannot be opened.
            OSError: there are too many open files at present.
        """
        self.shape: tuple[int, ...] = matrix.shape
        self.pending = True
        """Whether blocks are left to verify: while not, nothing but this flag is looked at."""
        self._path = path
        self._matrix = matrix
        self._sums: NDArray[np.uint64] | None = sums
        self._block_rows = block_rows
        self._verified = np.zeros(len(sums), np.bool_)
        self._file: _OpenFile | None = _OpenFile(path)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Rows) -> NDArray[np.float32]:
        """float32[n, dim]: of a slice (of step 1) in place, else a copy. Raises as `holding`."""
        if self.pending:
            self._require(rows, _go_on)
        return self._matrix[rows]

    def holding(self, rows: Rows, check: Callable[[], None]) -> NDArray[np.float32]:
        """All rows in place, of which no others may be read.

        Args:
            rows: int64 of any shape, those that will be read; negative ones are none.
            check: called between steps of bounded length; raises to end the search.

        Raises:
            DataLoss: a block of them is damaged or cannot be read; the message names the file.
            OSError: memory is short at present.
        """
        if self.pending:
            self._require(rows, check)
        return self._matrix

    def verifying(self) -> Iterator[int]:
        """Verifies the blocks that are left, piece by piece: yields the bytes read after each. Raises as `holding`."""
        for first in range(0, len(self._verified), _READ_BLOCKS):
            blocks = np.flatnonzero(~self._verified[first : first + _READ_BLOCKS]) + first
            if len(blocks):
                yield self._verify(blocks, _go_on)
        self._note_done()

    def _require(self, rows: slice | Rows, check: Callable[[], None]) -> None:
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            blocks = np.arange(first // self._block_rows, -(-last // self._block_rows))
        else:
            blocks = (rows[rows >= 0]) // self._block_rows
        missing = blocks[~self._verified[blocks]]
        if len(missing):
            self._verify(np.unique(missing), check)
            self._note_done()

    def _verify(self, blocks: Rows, check: Callable[[], None]) -> int:
        """Reads blocks (int64[n], ascending); returns the bytes. Two threads may read the same one: both find the same."""
        file, sums = self._file, self._sums
        if file is None or sums is None:
            return 0  # another thread has verified the last
        starts = np.flatnonzero(np.diff(blocks, prepend=-2) != 1)
        runs = [
            (int(run[at]), int(run[min(at + _READ_BLOCKS, len(run)) - 1]) + 1)
            for run in np.split(blocks, starts[1:])
            for at in range(0, len(run), _READ_BLOCKS)
        ]
        for group in range(0, len(runs), _HINTED_READS):
            several = runs[group : group + _HINTED_READS]
            if len(several) > 1:
                for first, last in several:
                    file.expect(*self._place(first, last))
            for first, last in several:
                check()
                self._verify_run(file, first, sums[first:last].tolist())
        return sum(self._place(first, last)[1] for first, last in runs)

    def _verify_run(self, file: _OpenFile, first: int, expected: list[int]) -> None:
        start, size = self._place(first, first + len(expected))
        content = memoryview(file.read(start, size))
        for block, sum_of_block in enumerate(expected, first):
            begin, length = self._place(block, block + 1)
            if xxhash.xxh3_64_intdigest(content[begin - start : begin - start + length]) != sum_of_block:
                last_row = min(len(self), (block + 1) * self._block_rows) - 1
                raise DataLoss(
                    f"{self._path} does not match its checksum in rows {block * self._block_rows} to {last_row}"
                )
            self._verified[block] = True

    @property
    def _block_bytes(self) -> int:
        return self._block_rows * 4 * self.shape[1]

    def _place(self, first: int, last: int) -> tuple[int, int]:
        """Where the blocks from `first` to before `last` begin in the file, and their bytes."""
        begin = files.HEADER_BYTES + first * self._block_bytes if first else 0
        end = files.HEADER_BYTES + min(last * self._block_bytes, self._matrix.nbytes)
        return begin, end - begin

    def _note_done(self) -> None:
        if self._verified.all():
            # In this order: who still sees it pending finds every block verified.
            self.pending = False
            self._file = self._sums = None


class _OpenFile:
    """A descriptor that is closed when the last thread lets go of it: closed sooner, its number could be another file's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise files.unreadable(path, error) from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def expect(self, start: int, size: int) -> None:
        """These bytes will be read soon. A hint: what takes none reads them all the same."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, size: int) -> bytes:
        """Fewer bytes where the file ends. Raises as `files.unreadable` says."""
        try:
            return os.pread(self._descriptor, size, start)
        except OSError as error:
            raise files.unreadable(self._path, error) from error


def _go_on() -> None:
    """No check."""
