"""Objects in a directory and in fsspec's stores: whole or absent, listed afresh, and errors in our words."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shard_server.backup.stores import DirectoryStore, ObjectStore, UrlStore, open_store
from shard_server.backup.transfer import Transfer
from vectorfleet.errors import FailedPrecondition, InternalError, ResourceExhausted, Unavailable, VectorfleetError


@pytest.fixture(params=["directory", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """A directory, and a store that fsspec keeps in memory, by turns."""
    if request.param == "directory":
        yield open_store(str(tmp_path / "place"))
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield open_store(url)
    memory = fsspec.filesystem("memory")
    if memory.exists(url):
        memory.rm(url, recursive=True)


def read(store: ObjectStore, key: str) -> bytes:
    return b"".join(store.chunks(key))


def test_what_is_written_is_listed_and_read(store: ObjectStore, tmp_path: Path) -> None:
    assert store.sizes("objects/") == {}
    (tmp_path / "file").write_bytes(b"x" * 5_000_000)
    moved: list[int] = []
    store.put_file("objects/u/1/a", tmp_path / "file", moved.append)
    store.put("objects/u/1/b", b"yy")
    store.put("objects/u/10/c", b"")
    assert sum(moved) == 5_000_000
    assert store.sizes("objects/u/1/") == {"objects/u/1/a": 5_000_000, "objects/u/1/b": 2}
    assert read(store, "objects/u/1/a") == b"x" * 5_000_000
    store.put("objects/u/1/b", b"zzz")
    assert read(store, "objects/u/1/b") == b"zzz"
    assert read(store, "objects/u/10/c") == b""
    with pytest.raises(FileNotFoundError):
        read(store, "objects/u/1/nowhere")


def test_a_copy_that_is_cancelled_leaves_no_object(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10_000_000)
    transfer = Transfer()
    transfer.cancel()
    with pytest.raises(VectorfleetError) as caught:
        store.put_file("objects/a", tmp_path / "file", transfer.moved)
    assert caught.value.reason == "CANCELLED"
    if isinstance(store, DirectoryStore):  # fsspec's memory keeps a part, as its simpler stores do
        assert store.sizes("objects/") == {}
        assert [path for path in (tmp_path / "place").rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_in_a_directory_is_no_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("objects/a", b"whole")
    (tmp_path / "objects" / ".b.1x2y").write_bytes(b"half")
    assert store.sizes("objects/") == {"objects/a": 5}


@pytest.mark.parametrize(
    ("failure", "kind", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ResourceExhausted, "DISK_FULL"),
        (PermissionError("AccessDenied"), FailedPrecondition, "DESTINATION_REFUSED"),
        (OSError(errno.EROFS, "Read-only file system"), FailedPrecondition, "DESTINATION_REFUSED"),
        (FileNotFoundError("NoSuchBucket"), FailedPrecondition, "DESTINATION_REFUSED"),
        (OSError(errno.EIO, "Input/output error"), Unavailable, "DESTINATION_UNAVAILABLE"),
        (RuntimeError("the library's own"), Unavailable, "DESTINATION_UNAVAILABLE"),
        (InternalError("ours"), InternalError, "INTERNAL"),
    ],
)
def test_errors_come_in_our_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: Exception, kind: type[Exception], reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    url = UrlStore("memory://somewhere")
    monkeypatch.setattr(url._files, "pipe_file", fail)
    monkeypatch.setattr("shard_server.backup.stores.tempfile.mkstemp", fail)
    for store, name in ((url, "memory://somewhere"), (DirectoryStore(tmp_path), str(tmp_path))):
        with pytest.raises(VectorfleetError) as caught:
            store.put("a", b"")
        assert (type(caught.value), caught.value.reason) == (kind, reason)
        assert reason == "INTERNAL" or name in caught.value.message


def test_a_url_that_this_node_cannot_use_is_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        open_store("nonsense://bucket")
    assert caught.value.reason == "DESTINATION_REFUSED"
    assert "nonsense://" in caught.value.message
