"""Small JSON files that say what they are: their kind, their format version, and a checksum over their fields.

    {"kind": "vectorfleet node", "format_version": 1, "checksum": "<XXH3-64>", "fields": {…}}

A reader refuses what it does not know in plain words, and any change of a field is found. Written whole or not at all: see
`durable`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from vectorfleet.errors import DataLoss


class UnknownFormat(DataLoss):
    """A file of a format version that this release does not read. The message says which file, and which versions."""

    def __init__(self, path: Path | str, found: object, known: int) -> None:
        super().__init__(f"{path} has format version {found}; this release reads version {known}")


def encode(kind: str, version: int, fields: dict[str, Any]) -> bytes:
    """The content of a record's file."""
    record = {"kind": kind, "format_version": version, "checksum": _checksum(kind, version, fields), "fields": fields}
    return json.dumps(record, indent=1).encode()


def read(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Reads a record's fields.

    Raises:
        FileNotFoundError: there is none.
        UnknownFormat: it is of another version.
        DataLoss: it is damaged, or of another kind.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataLoss(f"{path} cannot be read: {error.strerror}") from error
    try:
        record = json.loads(content)
        found_kind, found_version = record["kind"], record["format_version"]
        checksum, fields = record["checksum"], dict(record["fields"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataLoss(f"{path} cannot be read: {error!r}") from error
    # Before what is newer is called unknown, it must be whole: a flipped bit is damage, not a newer release.
    if checksum != _checksum(found_kind, found_version, fields):
        raise DataLoss(f"{path} does not match its checksum")
    if found_kind != kind:
        raise DataLoss(f"{path} holds a record of kind {found_kind!r} where {kind!r} is expected")
    if found_version != version:
        raise UnknownFormat(path, found_version, version)
    return fields


def _checksum(kind: object, version: object, fields: dict[str, Any]) -> str:
    plain = json.dumps([kind, version, fields], sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(plain.encode())
