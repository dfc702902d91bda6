"""`.jsonl`: one JSON object a line, with a vector or a text, read line by line. A row is a line; blank lines hold no point."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet.cli.rows import BATCH_BYTES_MAX, Fields, FileError, Roles, Rows, vector_rows

_BLOCK_BYTES: Final = 1024 * 1024


class JsonlFile:
    """A file of JSON objects. The first one decides what its fields are for; the others must agree.

    Args:
        path: the file, UTF-8.
        fields: the columns that the user named.

    Raises:
        FileError: there is no object, or it has neither a vector nor a text.
    """

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path = path
        self.rows = _count_lines(path)
        first = next(self._records(0), None)
        if first is None:
            raise FileError(path, "the file is empty")
        row, record, _ = first
        self._roles = Roles.of(fields, record.keys(), path)
        self.dim = 0
        if self._roles.vector:
            vector = record[self._roles.vector]
            if not isinstance(vector, list) or not vector:
                raise FileError(path, f"the field {self._roles.vector!r} is no list of numbers", self.place(row))
            self.dim = len(vector)

    def batches(self, first: int, size: int) -> Iterator[Rows]:
        """Reads from line `first` on (counted from 0), at most `size` points at a time."""
        batch: list[tuple[int, dict[str, Any]]] = []
        batch_bytes = 0
        for row, record, line_bytes in self._records(first):
            batch.append((row, record))
            batch_bytes += line_bytes
            if len(batch) == size or batch_bytes >= BATCH_BYTES_MAX:
                yield self._rows(batch, row + 1)
                batch, batch_bytes = [], 0
        if batch:
            yield self._rows(batch, self.rows)

    def place(self, row: int) -> str:
        """Names a row as an editor does: lines count from 1."""
        return f"line {row + 1}"

    def _records(self, first: int) -> Iterator[tuple[int, dict[str, Any], int]]:
        with self.path.open("rb") as file:
            for row, line in enumerate(itertools.islice(file, first, None), first):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise FileError(self.path, f"this is not JSON: {error}", self.place(row)) from error
                if not isinstance(record, dict):
                    raise FileError(self.path, "the line is no JSON object", self.place(row))
                yield row, record, len(line)

    def _rows(self, batch: list[tuple[int, dict[str, Any]]], after: int) -> Rows:
        roles = self._roles
        ids, texts = [], []
        for row, record in batch:
            try:
                ids.append(roles.point_id(record, row))
                if roles.texts:
                    texts.append(roles.text(record))
            except ValueError as error:
                raise FileError(self.path, str(error), self.place(row)) from error
        numbers = [row for row, _ in batch]
        payloads = [roles.payload_of(record) for _, record in batch]
        return Rows(numbers, after, ids, self._vectors(batch), texts or None, payloads)

    def _vectors(self, batch: list[tuple[int, dict[str, Any]]]) -> NDArray[np.float32] | None:
        if not self._roles.vector:
            return None
        try:
            return vector_rows([record.get(self._roles.vector, ()) for _, record in batch], self.dim)
        except ValueError as error:
            position, message = error.args
            raise FileError(self.path, message, self.place(batch[position][0])) from error


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines if last == b"\n" else lines + 1
