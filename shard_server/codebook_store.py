"""Codebook files on disk: `<folder>/<uid>/<version>.codebook`, whole or absent, known by their XXH3-64.

Blocking; callers run it in a thread. Knows neither gRPC nor FAISS: content is bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

import xxhash

from shard_server.data_dir import checked_uid
from shard_server.durable import write_durably

SUFFIX: Final = ".codebook"


def checksum_of(content: bytes) -> str:
    """XXH3-64 of a codebook file's content, as 16 hexadecimal digits."""
    return f"{xxhash.xxh3_64_intdigest(content):016x}"


class CodebookStore:
    """The codebooks that this node has, of all collections."""

    def __init__(self, folder: Path) -> None:
        """Takes a folder, which may not exist yet."""
        self._folder = folder

    def save(self, uid: str, version: int, content: bytes) -> str:
        """Stores a codebook durably, replacing a file of the same version; returns its checksum."""
        write_durably(self._path(uid, version), content)
        return checksum_of(content)

    def load(self, uid: str, version: int, checksum: str = "") -> bytes | None:
        """Reads a codebook.

        Args:
            uid: the collection's.
            version: of the codebook.
            checksum: the content must have it; "": any content will do.

        Returns:
            The content; None where the file is absent or has another checksum, and so must be fetched.
        """
        try:
            content = self._path(uid, version).read_bytes()
        except FileNotFoundError:
            return None
        return content if checksum in ("", checksum_of(content)) else None

    def versions(self, uid: str) -> list[int]:
        """The versions on disk, ascending."""
        names = (path.name.removesuffix(SUFFIX) for path in self._collection(uid).glob(f"*{SUFFIX}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def newest_since_s(self, uid: str) -> float | None:
        """When the newest version came to this node, by the wall clock; None: there is none."""
        versions = self.versions(uid)
        try:
            return self._path(uid, versions[-1]).stat().st_mtime if versions else None
        except FileNotFoundError:  # the collection is being removed
            return None

    def drop_older(self, uid: str, version: int, keep: Collection[int] = ()) -> None:
        """Removes the versions below `version`, except those in `keep`."""
        for older in self.versions(uid):
            if older < version and older not in keep:
                self._path(uid, older).unlink(missing_ok=True)

    def remove(self, uid: str) -> None:
        """Removes all codebooks of a deleted collection."""
        shutil.rmtree(self._collection(uid), ignore_errors=True)

    def _collection(self, uid: str) -> Path:
        return self._folder / checked_uid(uid)

    def _path(self, uid: str, version: int) -> Path:
        return self._collection(uid) / f"{version}{SUFFIX}"
