"""What a file of points is to the loader: rows, numbered from 0, read in batches from any row on.

The readers of each format make `Rows`; `Fields` says which columns a user named, `Roles` what each column of one file is for.
Whatever is wrong with a file is a `FileError` that names the file and the place.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

BATCH_BYTES_MAX: Final = 64 * 1024 * 1024
ID_FIELDS: Final = ("id", "_id")
VECTOR_FIELDS: Final = ("vector", "embedding")
TEXT_FIELD: Final = "text"
PAYLOAD_FIELD: Final = "payload"
_FLOAT_MAX: Final = sys.float_info.max


class FileError(Exception):
    """A file of points cannot be read; the message names it and the place."""

    def __init__(self, path: Path, message: str, place: str = "") -> None:
        super().__init__(f"{path}{f', {place}' if place else ''}: {' '.join(message.split())}")


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of points.

    Attributes:
        numbers: which row of the file each point is.
        after: the first row behind the batch: where to continue.
        ids: one a point.
        vectors: float32-compatible (n, dim), or None where the file holds texts.
        texts: one a point, or None where the file holds vectors.
        payloads: one a point, None where it has none.
    """

    numbers: Sequence[int]
    after: int
    ids: list[str]
    vectors: NDArray[Any] | None
    texts: list[str] | None = None
    payloads: list[dict[str, Any] | None] | None = None


class PointFile(Protocol):
    """A file that was opened and found to hold points.

    Attributes:
        path: where it is.
        rows: how many rows it has.
        dim: components of its vectors; 0: it holds texts.
    """

    path: Path
    rows: int
    dim: int

    def batches(self, first: int, size: int) -> Iterator[Rows]:
        """Reads from row `first` on, at most `size` rows at a time; never the whole file. Raises `FileError`."""

    def place(self, row: int) -> str:
        """Names a row as a person finds it, for example "line 17"."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The columns that a user named; empty: found by their usual names."""

    id: str = ""
    vector: str = ""
    texts: tuple[str, ...] = ()
    payload: tuple[str, ...] = ()
    id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns of one file are for: exactly one of `vector` and `texts` is set."""

    id: str
    """"": points are numbered by their rows."""
    vector: str
    texts: tuple[str, ...]
    payload: tuple[str, ...]
    """(): all others."""
    id_prefix: str

    @classmethod
    def of(cls, fields: Fields, names: Collection[str], path: Path) -> Roles:
        """Decides by the names of a file's columns; raises `FileError`."""
        there = ", ".join(sorted(names)) or "none at all"
        for wanted in (fields.id, fields.vector, *fields.texts, *fields.payload):
            if wanted and wanted not in names:
                raise FileError(path, f"there is no field {wanted!r}; the fields are {there}")
        if fields.vector and fields.texts:
            raise FileError(path, "points are made of vectors or of texts: name one kind of field")
        point_id = fields.id or next((name for name in ID_FIELDS if name in names), "")
        usual = next((name for name in VECTOR_FIELDS if name in names), "")
        vector = fields.vector or ("" if fields.texts else usual)
        texts = () if vector else fields.texts or ((TEXT_FIELD,) if TEXT_FIELD in names else ())
        if not vector and not texts:
            message = f"no field holds vectors or texts; the fields are {there}: name one"
            raise FileError(path, f"{message} with --vector-field or --text-field")
        roles = cls(point_id, vector, texts, fields.payload, fields.id_prefix)
        if texts and TEXT_FIELD not in texts and roles.in_payload(TEXT_FIELD) and TEXT_FIELD in names:
            message = f"a point's text is kept in its payload as {TEXT_FIELD!r}, but the rows have such a field, too"
            raise FileError(path, f"{message}: choose the others with --payload-field")
        return roles

    def in_payload(self, name: str) -> bool:
        """Whether a column goes into the payload."""
        if self.payload:
            return name in self.payload
        return name not in (self.id, self.vector, *self.texts)

    def point_id(self, record: Mapping[str, Any], row: int) -> str:
        """Returns a record's id; raises `ValueError`."""
        if not self.id:
            return f"{self.id_prefix}{row}"
        value = record.get(self.id)
        if isinstance(value, str):
            return self.id_prefix + value
        if value is None or isinstance(value, bool):
            raise ValueError(f"the id ({self.id}) is {'missing' if value is None else 'a truth value'}")
        try:
            return f"{self.id_prefix}{operator.index(value)}"
        except TypeError:
            raise ValueError(f"the id ({self.id}) is neither a text nor an integer") from None

    def text(self, record: Mapping[str, Any]) -> str:
        """Returns a record's text: its text fields, joined by a space; raises `ValueError`."""
        parts = []
        for name in self.texts:
            value = record.get(name)
            if not isinstance(value, str):
                raise ValueError(f"the field {name!r} is {'missing' if value is None else 'no text'}")
            parts.append(value)
        joined = " ".join(part for part in parts if part)
        if not joined:
            raise ValueError("the text is empty")
        return joined

    def payload_of(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns a record's payload: its other fields; an object under "payload" is that payload, or part of it."""
        payload: dict[str, Any] = {}
        for name, value in record.items():
            if not self.in_payload(name) or value is None:
                continue
            if name == PAYLOAD_FIELD and isinstance(value, Mapping):
                payload.update(value)
            else:
                payload[name] = value
        return payload or None


def as_float32(numbers: Any) -> NDArray[np.float32]:
    """Numbers as float32, C-contiguous; those beyond it become infinite, which whoever sends them refuses with their row."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers, np.float32)


def vector_rows(vectors: Sequence[Sequence[float]], dim: int) -> NDArray[np.float32]:
    """Makes an array of vectors from JSON; raises `ValueError` with the position of the first that is wrong as its argument."""
    try:
        array = np.asarray(vectors)
    except ValueError:
        array = np.empty(0, object)
    if array.ndim == 2 and array.shape[1] == dim and array.dtype.kind in "fiu":
        return as_float32(array)
    for position, vector in enumerate(vectors):
        numbers = isinstance(vector, list) and all(
            isinstance(one, int | float) and not isinstance(one, bool) for one in vector
        )
        if not numbers:
            raise ValueError(position, "the vector is no list of numbers")
        if len(vector) != dim:
            raise ValueError(position, f"the vector has {len(vector)} components, the first one has {dim}")
        if any(abs(one) > _FLOAT_MAX for one in vector):
            raise ValueError(position, "a component is beyond what a number can be")
    return as_float32(vectors)
