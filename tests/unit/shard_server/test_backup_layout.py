"""Where backups may lie, what lies where, what need not be sent, and what is found out about damage. Pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from shard_server.backup import layout
from shard_server.backup.places import Roots, normalised
from vectorfleet.errors import DataLoss, FailedPrecondition, InvalidRequest
from vectorfleet.internal.v1 import backup_pb2, storage_pb2


def file(name: str, checksum: int, size: int = 10) -> backup_pb2.BackedUpFile:
    entry = storage_pb2.FileEntry(name=name, bytes=size, checksum=checksum)
    return backup_pb2.BackedUpFile(path=name, object=layout.object_of(layout.shard_prefix("u", 3), entry))


def manifest(**changes: object) -> backup_pb2.BackupManifest:
    one = backup_pb2.CollectionBackup(uid="u", record='{"name": "films"}', shards=[backup_pb2.ShardBackup(seqno=2**60)])
    content = {"format_version": 1, "id": "b", "create_time_ms": 7, "written_by": "0.1.0", "collections": [one]}
    return backup_pb2.BackupManifest(**{**content, **changes})


def test_what_is_there_in_its_full_size_is_not_sent_again() -> None:
    old, cut, new, twin = file("a", 1), file("b", 2), file("c", 3), file("d", 3)
    present = {old.object.key: 10, cut.object.key: 9, "objects/u/3/of-another": 10}
    assert [one.object.key for one in layout.absent([old, cut, new, twin], present)] == [cut.object.key, new.object.key]
    assert layout.absent([old], {old.object.key: 10}) == []


def test_a_key_tells_collection_shard_and_content() -> None:
    entries = [
        storage_pb2.FileEntry(bytes=size, checksum=checksum) for size, checksum in [(1, 1), (1, 2), (2, 1), (1, 2**63)]
    ]
    prefixes = [layout.shard_prefix("u", 1), layout.shard_prefix("u", 11), layout.shard_prefix("v", 1)]
    keys = {layout.object_of(prefix, entry).key for prefix in prefixes for entry in entries}
    assert len(keys) == 12
    assert layout.object_of(prefixes[0], entries[3]).key == "objects/u/1/8000000000000000-1"


def test_a_manifest_comes_back_and_its_ids_are_found() -> None:
    content = layout.write_manifest(manifest())
    assert content.count(b"\n") == 2
    assert layout.read_manifest(content, "k") == manifest()
    keys = [layout.manifest_key(backup) for backup in ("20261123T1.2Z-ab", "20251123T1.2Z-ab")]
    found = layout.backup_ids([*keys, "backups/.hidden.jsonl", "backups/half.jsonl.part", "backups/x/y.jsonl"])
    assert found == ["20251123T1.2Z-ab", "20261123T1.2Z-ab"]


def test_a_newer_releases_fields_are_passed_over_and_its_formats_refused() -> None:
    body = layout.to_json(manifest()).replace(b'"id"', b'"later": [1], "id"')
    content = layout.write_manifest(manifest())
    newer = layout.from_json(backup_pb2.BackupManifest, body, "k")
    assert newer == manifest()
    assert layout.read_manifest(content, "k").format_version == 1
    with pytest.raises(FailedPrecondition) as caught:
        layout.read_manifest(layout.write_manifest(manifest(format_version=2)), "k")
    assert caught.value.reason == "BACKUP_FORMAT_UNKNOWN"
    assert "version 2" in caught.value.message


def test_every_flipped_bit_of_a_manifest_is_found() -> None:
    content = layout.write_manifest(manifest())
    ways = [bytes([*content[:at], content[at] ^ 1 << at % 8, *content[at + 1 :]]) for at in range(len(content))]
    ways += [content[:length] for length in range(len(content) - 1)]
    for way in ways:
        with pytest.raises(DataLoss, match=r"backups/b\.jsonl") as caught:
            layout.read_manifest(way, "backups/b.jsonl")
        assert caught.value.reason == "BACKUP_DAMAGED"


@pytest.mark.parametrize("backup", ["", "../b", "a/b", ".b", "b\n", "ü", "x" * 129])
def test_what_is_no_id_is_refused(backup: str) -> None:
    with pytest.raises(InvalidRequest):
        layout.manifest_key(backup)


@pytest.mark.parametrize(
    "place",
    ["", "relative/folder", "file://relative", "s3://", "s3://b//x", "s3://b/../c", "s3://b/.", "s3:///x", "s3://b/x?versionId=1",
     "s3://b/*", "simplecache::s3://b/x", "s3://b/x::file:///etc", "/a\0b", "/a\nb", "/" + "x" * 1024],
)  # fmt: skip
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(InvalidRequest):
        normalised(place)


def test_places_have_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert normalised(f"{tmp_path}/link/../link/x/") == f"{tmp_path}/real/x"
    assert normalised(f"file://{tmp_path}/link") == f"{tmp_path}/real"
    assert normalised("S3://bucket/folder/") == "s3://bucket/folder"


def test_a_node_admits_what_is_below_its_roots_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "backups", tmp_path / "backups-of-others"
    inside.mkdir()
    outside.mkdir()
    (inside / "way-out").symlink_to(outside)
    roots = Roots([str(inside), "s3://bucket/ours"])
    for place in (str(inside), f"{inside}/a/b", "s3://bucket/ours", "s3://bucket/ours/a"):
        assert roots.admit(place, "n1") == place
    for place in (
        str(tmp_path),
        str(outside),
        f"{inside}/way-out",
        f"{inside}/../x",
        "s3://bucket",
        "s3://bucket/ours2",
        "gs://b",
    ):
        with pytest.raises(FailedPrecondition) as caught:
            roots.admit(place, "n1")
        assert caught.value.reason == "DESTINATION_REFUSED"
        assert "--backup-root" in caught.value.message
        assert str(inside) in caught.value.message
    with pytest.raises(FailedPrecondition, match=r"--backup-root alone, and has none"):
        Roots([]).admit("/anywhere", "n1")
    with pytest.raises(ValueError, match="--backup-root"):
        Roots(["relative"])
    assert Roots(["/"]).admit("/anywhere", "n1") == "/anywhere"
