"""Files that are either whole or absent: written under a temporary name, synced, renamed; checked by XXH3-64.

Each file of ours opens with a 64-byte header: what it is, its format version, and its shape. A reader refuses what it does
not know, in plain words, and `verify` finds any flipped bit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import xxhash

from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2

HEADER_BYTES: Final = 64
FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQ40x")
_CHUNK_BYTES: Final = 1 << 22


def header(kind: bytes, columns: int, rows: int) -> bytes:
    """The first 64 bytes of a file: an 8-byte kind, the format version, and the shape of what follows."""
    return _HEADER.pack(kind, FORMAT_VERSION, columns, rows)


def check_header(path: Path, kind: bytes) -> tuple[int, int]:
    """Reads a header back; returns (columns, rows). Raises `DataLoss` where the file is not what its name says."""
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise DataLoss(f"{path} ends within its header")
    found, version, columns, rows = _HEADER.unpack(raw)
    if found != kind:
        raise DataLoss(f"{path} is not a {kind.decode().strip()} file")
    if version != FORMAT_VERSION:
        raise DataLoss(f"{path} has format version {version}; this release reads version {FORMAT_VERSION}")
    return columns, rows


def write(path: Path, parts: Iterable[bytes | memoryview]) -> storage_pb2.FileEntry:
    """Writes `parts` one after the other and syncs; the caller makes the name visible. Returns size and checksum."""
    digest = xxhash.xxh3_64()
    size = 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part) if isinstance(part, bytes) else part.nbytes
        file.flush()
        os.fsync(file.fileno())
    return storage_pb2.FileEntry(name=path.name, bytes=size, checksum=digest.intdigest())


def seal(path: Path) -> storage_pb2.FileEntry:
    """Syncs a file that another library wrote, and returns its size and checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return measured(path)


def measured(path: Path) -> storage_pb2.FileEntry:
    """The size and checksum of a file as it is."""
    return storage_pb2.FileEntry(name=path.name, bytes=path.stat().st_size, checksum=_checksum(path))


def verify(directory: Path, entries: Sequence[storage_pb2.FileEntry]) -> None:
    """Raises `DataLoss` with the file's name unless each file is there, whole and unchanged."""
    for entry in entries:
        path = directory / entry.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataLoss(f"{path} cannot be read: {error.strerror}") from error
        if size != entry.bytes:
            raise DataLoss(f"{path} has {size} bytes where the manifest says {entry.bytes}")
        if _checksum(path) != entry.checksum:
            raise DataLoss(f"{path} does not match its checksum")


def sync_directory(path: Path) -> None:
    """Makes names created or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> int:
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataLoss(f"{path} cannot be read: {error.strerror}") from error
    return digest.intdigest()
