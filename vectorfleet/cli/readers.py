"""Opens a file of points by its suffix; and reads `.parquet`, the only place that knows pyarrow (an extra: `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet.cli.dense_files import DenseFile, FvecsFile, NpyFile
from vectorfleet.cli.jsonl_file import JsonlFile
from vectorfleet.cli.rows import Fields, FileError, PointFile, Roles, Rows

_DENSE: Final[Mapping[str, type[FvecsFile] | type[NpyFile]]] = {".fvecs": FvecsFile, ".npy": NpyFile}


def open_points(path: Path, fields: Fields) -> PointFile:
    """Opens a file of points.

    Raises:
        FileError: the format is not known, or the file is not of its format.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in _DENSE:
            return _DENSE[suffix](path, fields)
        if suffix in (".jsonl", ".ndjson"):
            return JsonlFile(path, fields)
        if suffix == ".parquet":
            return ParquetFile(path, fields)
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from error
    raise FileError(
        path, f"the format {suffix or 'without a suffix'} is not known: .fvecs, .npy, .parquet and .jsonl are"
    )


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Reads queries: the whole of an `.npy` (one vector is enough) or `.fvecs` file, as float32 (n, dim).

    Raises:
        FileError: it is none.
    """
    reader = _DENSE.get(path.suffix.lower())
    if reader is None:
        raise FileError(path, "queries are read from .npy or .fvecs")
    opened: DenseFile = reader(path, Fields())
    (rows,) = opened.batches(0, opened.rows)
    assert rows.vectors is not None
    return rows.vectors


class ParquetFile:
    """`.parquet`: a column of lists holds vectors, or columns of text hold texts; read a batch of rows at a time.

    Args:
        path: the file.
        fields: the columns that the user named.

    Raises:
        FileError: it is no Parquet, pyarrow is not installed, or there are neither vectors nor texts.
    """

    def __init__(self, path: Path, fields: Fields) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError:
            raise FileError(path, "reading Parquet needs pyarrow: pip install 'vectorfleet[parquet]'") from None
        self.path = path
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except pyarrow.ArrowException as error:
            raise FileError(path, f"this is no Parquet file, or it is cut short: {error}") from error
        self._failures = (pyarrow.ArrowException, OSError)
        self.rows = self._file.metadata.num_rows
        if not self.rows:
            raise FileError(path, "the file holds no rows")
        self._roles = Roles.of(fields, self._file.schema_arrow.names, path)
        self.dim = 0
        if self._roles.vector:
            first = next(self._columns(0, 1))[1]
            self.dim = int(_matrix(first[self._roles.vector], None, path, 0).shape[1])

    def batches(self, first: int, size: int) -> Iterator[Rows]:
        """Reads from row `first` on, at most `size` rows at a time."""
        roles = self._roles
        for start, columns in self._columns(first, size):
            count = len(next(iter(columns.values())))
            vectors = _matrix(columns.pop(roles.vector), self.dim, self.path, start) if roles.vector else None
            wanted = {name: column.to_pylist() for name, column in columns.items()}
            records = [{name: values[at] for name, values in wanted.items()} for at in range(count)]
            ids, texts = [], []
            for row, record in enumerate(records, start):
                try:
                    ids.append(roles.point_id(record, row))
                    if roles.texts:
                        texts.append(roles.text(record))
                except ValueError as error:
                    raise FileError(self.path, str(error), self.place(row)) from error
            payloads = [roles.payload_of(record) for record in records]
            yield Rows(range(start, start + count), start + count, ids, vectors, texts or None, payloads)

    def place(self, row: int) -> str:
        """Names a row."""
        return f"row {row}"

    def _columns(self, first: int, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (first row, column arrays by name); row groups before `first` are not read."""
        roles = self._roles
        used = [
            name
            for name in self._file.schema_arrow.names
            if name in (roles.id, roles.vector, *roles.texts) or roles.in_payload(name)
        ]
        groups: list[int] = []
        start = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if not groups and start + rows <= first:
                start += rows
            else:
                groups.append(group)
        try:
            for batch in self._file.iter_batches(size, row_groups=groups, columns=used):
                skipped = max(0, first - start)
                if skipped < len(batch):
                    part = batch.slice(skipped)
                    yield start + skipped, dict(zip(part.schema.names, part.columns, strict=True))
                start += len(batch)
        except self._failures as error:
            raise FileError(self.path, f"the rows cannot be read: {error}", self.place(start)) from error


def _matrix(column: Any, dim: int | None, path: Path, start: int) -> NDArray[np.float32]:
    """A column of lists as float32 (n, dim)."""
    if not hasattr(column, "flatten") or not hasattr(column, "value_lengths"):
        raise FileError(path, f"the column of vectors is of {column.type}, not of lists of numbers")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    wanted = dim if dim is not None else lengths[0]
    for at in np.flatnonzero(lengths != wanted)[:1]:  # a missing vector has no length: NaN
        has = "is missing" if column[int(at)].as_py() is None else f"has {int(lengths[at])} components, not {wanted}"
        raise FileError(path, f"the vector {has}", f"row {start + int(at)}")
    values = column.flatten()
    if values.null_count:
        raise FileError(path, "a vector lacks a component", f"row {start}")
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "fiu" or np.isnan(float(wanted)) or not wanted:
        raise FileError(path, f"the vectors are of {column.type}, not of numbers", f"row {start}")
    return np.asarray(numbers, np.float32).reshape(len(column), int(wanted))
