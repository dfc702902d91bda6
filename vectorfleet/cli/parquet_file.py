"""`.parquet`: a column of lists, or of texts, and payloads of all else; the only place that knows pyarrow (an extra)."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet.cli.rows import Fields, FileError, Roles, Rows, as_float32

_PLAIN: Final = frozenset({str, int, bool, type(None)})
"""What JSON has as Python has it."""


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
            self._file = parquet.ParquetFile(path, memory_map=True, coerce_int96_timestamp_unit="us")
        except pyarrow.ArrowException as error:
            raise FileError(path, f"this is no Parquet file, or it is cut short: {error}") from error
        self._in_microseconds = partial(_in_microseconds, pyarrow)
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
            wanted = {name: self._values(name, column, start) for name, column in columns.items()}
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

    def _values(self, name: str, column: Any, start: int) -> list[Any]:
        """A column as Python values; of the payload's, as what JSON knows."""
        hint = "" if name in (self._roles.id, *self._roles.texts) else ": choose the others with --payload-field"
        try:
            values: list[Any] = column.to_pylist()
        except (ValueError, OverflowError) as error:
            raise FileError(self.path, f"the field {name!r} of {column.type} cannot be read{hint} ({error})") from error
        if self._roles.in_payload(name) and not _PLAIN.issuperset(map(type, values)):
            for at, value in enumerate(values):
                try:
                    values[at] = _json_value(value)
                except ValueError as error:
                    message = f"the field {name!r} holds {error}, which no payload can{hint}"
                    raise FileError(self.path, message, self.place(start + at)) from error
        return values

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
                    columns = map(self._in_microseconds, part.columns)
                    yield start + skipped, dict(zip(part.schema.names, columns, strict=True))
                start += len(batch)
        except self._failures as error:
            raise FileError(self.path, f"the rows cannot be read: {error}", self.place(start)) from error


def _in_microseconds(pyarrow: Any, column: Any) -> Any:
    """A column of times in nanoseconds, which Python does not have, in microseconds; any other as it is."""
    if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    if pyarrow.types.is_time64(column.type):
        return column.cast(pyarrow.time64("us"), safe=False)
    return column


def _json_value(value: Any) -> Any:
    """What JSON has for a value: ISO 8601 for times, null for NaN (pandas' null). Raises `ValueError`, naming the kind."""
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("an infinite number")
        return None if math.isnan(value) else value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return _json_value(float(value))
    if isinstance(value, dict):
        return {key: _json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if type(value) in _PLAIN:
        return value
    raise ValueError(type(value).__name__)


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
    return as_float32(numbers).reshape(len(column), int(wanted))
