"""Objects at a backup's destination: written whole or not at all, read in pieces. The only module that knows fsspec.

Two kinds of place, one face. A directory is written by ourselves, since fsspec neither syncs nor renames: a backup that says
it is complete must survive a power cut. Everything else is fsspec's: object stores make an object visible when its last byte
is there; simpler ones may leave a short one, which the layout takes for absent. Both list what is there afresh each time,
since other nodes and other backups write beside us.

What a place says in its own words comes out in ours: `DESTINATION_REFUSED` (not allowed, or no such bucket, or a package is
missing), `DISK_FULL`, `DESTINATION_UNAVAILABLE` for the rest; an object that is not there is a `FileNotFoundError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import fsspec
from fsspec.callbacks import Callback

from shard_server.durable import sync_folder
from vectorfleet.cluster.backup_place import is_url
from vectorfleet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VectorfleetError

CHUNK_BYTES: Final = 4 << 20
_S3: Final = frozenset({"s3", "s3a"})
# Ten parts of 50 MiB at once, s3fs's own choice, would be half a gigabyte for one file.
_S3_OPTIONS: Final = {"max_concurrency": 2}
_S3_PUT_OPTIONS: Final = {"chunksize": 16 << 20}
_REFUSALS: Final = frozenset({errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL})
Moved = Callable[[int], None]
"""Told of every few bytes that have been moved; may raise, which ends the copy."""


class ObjectStore(Protocol):
    """Objects by key (`a/b/c`), below one place."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object below a prefix, by key; none where there is no such prefix."""

    def put(self, key: str, content: bytes) -> None:
        """Writes a small object, whole or not at all; replaces one that is there."""

    def put_file(self, key: str, path: Path, moved: Moved) -> None:
        """Writes a file as an object, whole or not at all; replaces one that is there."""

    def chunks(self, key: str) -> Iterator[bytes]:
        """Reads an object in pieces. Raises `FileNotFoundError` where there is none."""


def open_store(place: str) -> ObjectStore:
    """The store at a normalised place.

    Raises:
        FailedPrecondition: DESTINATION_REFUSED, this node knows no such kind of URL or lacks the package for it.
    """
    return UrlStore(place) if is_url(place) else DirectoryStore(Path(place))


class DirectoryStore:
    """A directory. An object that is there survives a power cut."""

    def __init__(self, folder: Path) -> None:
        """Takes a folder, which is made when something is written."""
        self._folder = folder

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `ObjectStore`."""
        with _translated(str(self._folder)):
            files = [path for path in (self._folder / prefix).rglob("*") if not path.name.startswith(".")]
            return {str(path.relative_to(self._folder)): path.stat().st_size for path in files if path.is_file()}

    def put(self, key: str, content: bytes) -> None:
        """See `ObjectStore`."""
        self._write(key, iter([content]), _ignore)

    def put_file(self, key: str, path: Path, moved: Moved) -> None:
        """See `ObjectStore`."""
        with path.open("rb") as source:
            self._write(key, iter(lambda: source.read(CHUNK_BYTES), b""), moved)

    def chunks(self, key: str) -> Iterator[bytes]:
        """See `ObjectStore`."""
        with _translated(str(self._folder)), (self._folder / key).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def _write(self, key: str, chunks: Iterator[bytes], moved: Moved) -> None:
        path = self._folder / key
        with _translated(str(self._folder), writing=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
                        moved(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            sync_folder(path.parent)


class UrlStore:
    """Any store that fsspec has a file system for."""

    def __init__(self, url: str) -> None:
        """Raises `FailedPrecondition` where this node cannot reach such a URL at all."""
        scheme = url.partition("://")[0]
        self._url = url
        self._put_options = _S3_PUT_OPTIONS if scheme in _S3 else {}
        try:
            # No cache of instances or listings: other nodes change what is there.
            self._files: Any = fsspec.filesystem(
                scheme, skip_instance_cache=True, use_listings_cache=False, **(_S3_OPTIONS if scheme in _S3 else {})
            )
        except (ValueError, ImportError) as error:
            hint = ": pip install 'vectorfleet[s3]'" if scheme in _S3 else ""
            raise FailedPrecondition(
                f"this node cannot use {scheme}:// URLs ({error}){hint}", reason="DESTINATION_REFUSED"
            ) from error
        self._base = str(self._files._strip_protocol(url)).rstrip("/")

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `ObjectStore`."""
        with _translated(self._url):
            try:
                found = self._files.find(f"{self._base}/{prefix}", detail=True)
            except FileNotFoundError:
                return {}
        return {name.removeprefix(f"{self._base}/"): int(about["size"]) for name, about in found.items()}

    def put(self, key: str, content: bytes) -> None:
        """See `ObjectStore`."""
        with _translated(self._url, writing=True):
            self._files.pipe_file(f"{self._base}/{key}", content)

    def put_file(self, key: str, path: Path, moved: Moved) -> None:
        """See `ObjectStore`."""
        with _translated(self._url, writing=True):
            self._files.put_file(str(path), f"{self._base}/{key}", callback=_Telling(moved), **self._put_options)

    def chunks(self, key: str) -> Iterator[bytes]:
        """See `ObjectStore`."""
        with _translated(self._url), self._files.open(f"{self._base}/{key}", "rb", cache_type="none") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


class _Telling(Callback):  # type: ignore[misc]  # fsspec is untyped
    """fsspec tells us how far it is through this."""

    def __init__(self, moved: Moved) -> None:
        super().__init__()
        self._moved = moved

    def relative_update(self, inc: int = 1) -> None:
        self._moved(inc)


def _ignore(count: int) -> None:
    pass


@contextlib.contextmanager
def _translated(place: str, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except VectorfleetError:
        raise
    except FileNotFoundError as error:
        if not writing:
            raise
        raise FailedPrecondition(f"{place} does not exist: {error}", reason="DESTINATION_REFUSED") from error
    except PermissionError as error:
        raise FailedPrecondition(f"{place} does not let this node in: {error}", reason="DESTINATION_REFUSED") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(f"{place} is full", reason="DISK_FULL") from error
        if error.errno in _REFUSALS:
            raise FailedPrecondition(f"{place} cannot be used: {error}", reason="DESTINATION_REFUSED") from error
        raise Unavailable(f"{place} does not answer: {error}", reason="DESTINATION_UNAVAILABLE") from error
    except Exception as error:  # each store's library has errors of its own
        raise Unavailable(
            f"{place} does not answer: {type(error).__name__}: {error}", reason="DESTINATION_UNAVAILABLE"
        ) from error
