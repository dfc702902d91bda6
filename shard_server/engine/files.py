"""Immutable files that are either whole or absent: written under a temporary name, synced, renamed; checked by XXH3-64.

Each file of ours says in 64 bytes what it is: its kind, its format version, and its shape. They stand in front of it, or at
its end where another library reads the front. A reader refuses what it does not know, in plain words, and `verify` finds any
flipped bit.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import xxhash

from shard_server.records import UnknownFormat
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2

HEADER_BYTES: Final = 64
FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQ40x")
_CHUNK_BYTES: Final = 1 << 22
SHORTAGES: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What a process or a machine runs out of for a while, memory to map or open files: it says nothing about the file."""


def unreadable(path: Path, error: Exception) -> OSError | DataLoss:
    """What to raise where `error` kept a file from being read: `OSError` for a shortage that passes, else `DataLoss`."""
    words = (error.strerror if isinstance(error, OSError) else str(error)) or repr(error)
    for number in SHORTAGES:
        if os.strerror(number) in words:
            return OSError(number, os.strerror(number), str(path))
    return DataLoss(f"{path} cannot be read: {words}")


def header(kind: bytes, columns: int, rows: int) -> bytes:
    """The 64 bytes: an 8-byte kind, the format version, and the shape of the content."""
    return _HEADER.pack(kind, FORMAT_VERSION, columns, rows)


def parse_header(raw: bytes, kind: bytes, path: Path | str) -> tuple[int, int]:
    """Reads a header back; returns (columns, rows).

    Raises:
        UnknownFormat: the file is of another format version.
        DataLoss: it is not what its name (`path`, for the message) says.
    """
    if len(raw) < HEADER_BYTES:
        raise DataLoss(f"{path} ends within its header")
    found, version, columns, rows = _HEADER.unpack(raw[:HEADER_BYTES])
    if found != kind:
        raise DataLoss(f"{path} is not a {kind.decode().strip()} file")
    if version != FORMAT_VERSION:
        raise UnknownFormat(path, version, FORMAT_VERSION)
    return columns, rows


def check_header(path: Path, kind: bytes, *, at_end: bool = False) -> tuple[int, int]:
    """Reads the header of a file; returns (columns, rows). Raises as `parse_header`."""
    try:
        with path.open("rb") as file:
            if at_end:
                file.seek(max(0, path.stat().st_size - HEADER_BYTES))
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_header(raw, kind, path)


class Output:
    """A file being written: `write` its parts, then `finish`. The caller makes the name visible, and removes leftovers."""

    def __init__(self, path: Path) -> None:
        """Creates or empties the file. Raises `OSError`."""
        self._path = path
        self._digest = xxhash.xxh3_64()
        self._size = 0
        self._file = path.open("wb")

    def write(self, part: bytes | memoryview) -> None:
        """Appends. Raises `OSError`."""
        self._file.write(part)
        self._digest.update(part)
        self._size += len(part) if isinstance(part, bytes) else part.nbytes

    def finish(self) -> storage_pb2.FileEntry:
        """Syncs and closes; returns the name, size and checksum. Raises `OSError`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return storage_pb2.FileEntry(name=self._path.name, bytes=self._size, checksum=self._digest.intdigest())

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        # After a failure; what could not be written cannot be written by closing either, and must not hide the reason.
        try:
            self._file.close()
        except OSError:
            return


def write(path: Path, parts: Iterable[bytes | memoryview]) -> storage_pb2.FileEntry:
    """Writes `parts` one after the other and syncs; see `Output`."""
    with Output(path) as output:
        for part in parts:
            output.write(part)
        return output.finish()


def measured(path: Path) -> storage_pb2.FileEntry:
    """The size and checksum of a file as it is. Raises `DataLoss` where it cannot be read."""
    digest, size = xxhash.xxh3_64(), 0
    for chunk in _chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return storage_pb2.FileEntry(name=path.name, bytes=size, checksum=digest.intdigest())


def verify(directory: Path, entries: Sequence[storage_pb2.FileEntry]) -> None:
    """Raises `DataLoss` with the file's name unless each file is there, whole and unchanged."""
    for entry in entries:
        for _ in verifying(directory / entry.name, entry):
            pass


def verifying(path: Path, entry: storage_pb2.FileEntry) -> Iterator[bytes]:
    """Reads a file piece by piece, and raises `DataLoss` at the end unless it is whole and unchanged."""
    check_size(path, entry)
    digest = xxhash.xxh3_64()
    for chunk in _chunks(path):
        digest.update(chunk)
        yield chunk
    if digest.intdigest() != entry.checksum:
        raise DataLoss(f"{path} does not match its checksum")


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise unreadable(path, error) from error


def check_size(path: Path, entry: storage_pb2.FileEntry) -> None:
    """Raises `DataLoss` unless the file is there with the size that it was written with."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
    if size != entry.bytes:
        raise DataLoss(f"{path} has {size} bytes where the manifest says {entry.bytes}")
