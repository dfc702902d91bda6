"""The data folder: one process, one identity, nothing removed but what was deleted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shard_server import records
from shard_server.codebook_store import CodebookStore, checksum_of
from shard_server.data_dir import DataDir, DataDirError, checked_uid
from shard_server.durable import write_durably
from tests.unit.shard_server.fake_replica import collection


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "new" / "folder")
    made = data.node_id
    data.close()
    again = DataDir(tmp_path / "new" / "folder", made)
    assert again.node_id == made
    again.close()
    with pytest.raises(DataDirError, match=f"belongs to node '{made}', not to 'other'"):
        DataDir(tmp_path / "new" / "folder", "other")
    DataDir(tmp_path / "new" / "folder").close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    with pytest.raises(DataDirError, match="another process"):
        DataDir(tmp_path)
    data.close()
    DataDir(tmp_path).close()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            records.encode("vectorfleet node", 2, {"name": "n"}).decode(),
            "format version 2; this release reads version 1",
        ),
        (records.encode("vectorfleet node", 1, {"node_id": "n"}).decode().replace('"n"', '"m"'), "checksum"),
        (records.encode("vectorfleet node", 1, {}).decode(), "names no node"),
        (records.encode("vectorfleet cat", 1, {}).decode(), "kind 'vectorfleet cat'"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_an_unknown_identity_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(DataDirError, match=complaint):
        DataDir(tmp_path)
    assert (tmp_path / "node.json").read_text() == content


def test_collections_are_remembered_and_removed(tmp_path: Path) -> None:
    data = DataDir(tmp_path, "n1")
    first, second = collection("u1", ["n1"]), collection("u2", ["n1"])
    for record in (first, second):
        data.save_collection(record)
    data.replica("u1", 0).mkdir()
    changed = replace(second, dim=9)
    data.save_collection(changed)
    assert data.known_collections() == [first, changed]
    assert data.stored_uids() == {"u1", "u2"}
    data.remove_collection("u1")
    data.remove_collection("never-there")
    assert data.known_collections() == [changed]
    assert not data.replica("u1", 0).exists()
    (tmp_path / "replicas" / "u2" / "collection.json").write_text("{")
    assert data.known_collections() == []
    assert data.stored_uids() == {"u2"}
    data.close()


def test_what_an_earlier_folder_held_is_lost_for_ever(tmp_path: Path) -> None:
    data = DataDir(tmp_path, "n1")
    (tmp_path / "replicas" / "u1" / "0").mkdir(parents=True)
    assert not data.is_lost("u1", 1)
    data.join([("u1", 0), ("u1", 1)])
    assert data.is_lost("u1", 1)
    assert not data.is_lost("u1", 0), "it is here"
    data.join([("u2", 0)])
    assert not data.is_lost("u2", 0), "given to this folder, since that was registered"
    data.close()
    again = DataDir(tmp_path)
    again.join([("u1", 0), ("u1", 1), ("u2", 0)])
    assert [again.is_lost("u1", 0), again.is_lost("u1", 1), again.is_lost("u2", 0)] == [False, True, False]
    again.close()
    (tmp_path / "joined.json").write_text("{}")
    with pytest.raises(DataDirError, match=r"joined\.json cannot be read"):
        DataDir(tmp_path)


@pytest.mark.parametrize("uid", ["", "..", "a/b", "/etc", ".hidden", "a\x00b", "x" * 129])
def test_no_uid_leads_out_of_the_folder(tmp_path: Path, uid: str) -> None:
    with pytest.raises(ValueError, match="no collection uid"):
        checked_uid(uid)
    with pytest.raises(ValueError, match="no collection uid"):
        CodebookStore(tmp_path).load(uid, 1)


def test_a_durable_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_durably(path, b"old")

    def torn(_: int) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", torn)
        with pytest.raises(OSError, match="full"):
            write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"], "nothing is left behind"
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"


def test_codebooks_are_known_by_their_checksum(tmp_path: Path) -> None:
    store = CodebookStore(tmp_path)
    assert store.versions("u1") == []
    checksum = store.save("u1", 2, b"two")
    assert checksum == checksum_of(b"two")
    assert len(checksum) == 16
    for version in (1, 10):
        store.save("u1", version, b"%d" % version)
    store.save("u2", 1, b"other")
    assert store.load("u1", 2) == store.load("u1", 2, checksum) == b"two"
    assert store.load("u1", 2, checksum_of(b"else")) is None
    assert store.load("u1", 3) is None
    assert store.versions("u1") == [1, 2, 10]
    store.drop_older("u1", 2)
    assert store.versions("u1") == [2, 10]
    store.remove("u1")
    assert store.versions("u1") == []
    assert store.load("u2", 1) == b"other"
