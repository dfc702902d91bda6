"""`.npy` and `.fvecs`: files of vectors alone, mapped into memory and read row by row; a point's id is its row number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vectorfleet.cli.rows import Fields, FileError, Rows, as_float32


class DenseFile:
    """Vectors behind an array of shape (rows, dim) that is mapped, not read.

    Args:
        path: the file.
        array: its vectors.
        fields: of which only `id_prefix` makes sense here.

    Raises:
        FileError: a column was named.
    """

    def __init__(self, path: Path, array: NDArray[Any], fields: Fields) -> None:
        if fields.id or fields.vector or fields.texts or fields.payload:
            raise FileError(path, f"{path.suffix} files hold vectors alone: there are no fields to name")
        self.path = path
        self.rows, self.dim = array.shape
        self._array = array
        self._id_prefix = fields.id_prefix

    def batches(self, first: int, size: int) -> Iterator[Rows]:
        """Reads from row `first` on, at most `size` rows at a time."""
        for start in range(first, self.rows, size):
            after = min(start + size, self.rows)
            numbers = range(start, after)
            self._check(start, after)
            ids = [f"{self._id_prefix}{row}" for row in numbers]
            yield Rows(numbers, after, ids, as_float32(self._array[start:after]))

    def place(self, row: int) -> str:
        """Names a row."""
        return f"row {row}"

    def _check(self, start: int, after: int) -> None:
        """Raises `FileError` where rows are not what the file said."""


class FvecsFile(DenseFile):
    """`.fvecs`: for each vector its dimension as int32, then as many float32, all little-endian."""

    def __init__(self, path: Path, fields: Fields) -> None:
        size = path.stat().st_size
        head = np.fromfile(path, "<i4", 1)
        if not len(head):
            raise FileError(path, "the file is empty")
        dim = int(head[0])
        if not 1 <= dim <= size // 4:
            raise FileError(path, f"this is no .fvecs file: it begins with dimension {dim}")
        row_bytes = 4 * (dim + 1)
        if size % row_bytes:
            message = f"{size} bytes are no whole number of rows of dimension {dim} ({row_bytes} bytes each)"
            raise FileError(path, f"{message}: is it cut short?", f"row {size // row_bytes}")
        self._heads = np.memmap(path, "<i4", mode="r").reshape(-1, dim + 1)[:, 0]
        super().__init__(path, np.memmap(path, "<f4", mode="r").reshape(-1, dim + 1)[:, 1:], fields)

    def _check(self, start: int, after: int) -> None:
        wrong = np.flatnonzero(self._heads[start:after] != self.dim)
        if len(wrong):
            row = start + int(wrong[0])
            message = f"it says dimension {self._heads[row]}, the first row says {self.dim}"
            raise FileError(self.path, message, f"row {row}")


class NpyFile(DenseFile):
    """`.npy`: one array of numbers, of shape (rows, dim)."""

    def __init__(self, path: Path, fields: Fields) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise FileError(path, f"this is no .npy file, or it is cut short: {error}") from error
        if not isinstance(array, np.ndarray):
            array.close()
            raise FileError(path, "this is an archive of arrays (.npz): save one array of shape (rows, dim) as .npy")
        if array.dtype.kind not in "fiu":
            raise FileError(path, f"vectors are numbers, but the array is of {array.dtype}")
        if array.ndim != 2 or not array.size:
            raise FileError(path, f"vectors are an array of shape (rows, dim), but this one is of shape {array.shape}")
        super().__init__(path, array, fields)
