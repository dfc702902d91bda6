"""What a release wrote, every later one reads; what it does not know, it refuses plainly and leaves as it is."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_server import data_dir, records
from shard_server.codebook_store import CodebookStore
from shard_server.data_dir import DataDir, DataDirError
from shard_server.engine import files, recovery
from shard_server.engine.index import Codebook
from shard_server.engine.replica import Replica
from tests.fixtures import make_data_folder as kept_folder
from tests.unit.engine.conftest import maintain
from vectorfleet.errors import DataLoss


def unpacked(archive: Path, tmp_path: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The newest of the data folders that are kept."""
    return unpacked(kept_folder.ARCHIVES[-1], tmp_path)


def tree(folder: Path) -> dict[str, str]:
    """Every file with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def opened(folder: Path) -> tuple[Replica, Codebook]:
    data = DataDir(folder, kept_folder.NODE)
    (record,) = data.known_collections()
    assert (record.name, record.uid, record.dim) == ("things", kept_folder.UID, kept_folder.DIM)
    assert record.codebook is not None
    content = CodebookStore(data.codebooks).load(record.uid, record.codebook.version, record.codebook.checksum)
    assert content is not None, "the codebook's file is not the one that the collection names"
    codebook = Codebook.load(content, record.codebook.version)
    try:
        return Replica.open(data.replica(record.uid, 0), kept_folder.IDENTITY, kept_folder.SETTINGS, codebook), codebook
    finally:
        data.close()


@pytest.mark.parametrize("archive", kept_folder.ARCHIVES, ids=lambda path: path.name)
def test_a_kept_folder_is_read_and_written_on(archive: Path, tmp_path: Path) -> None:
    folder = unpacked(archive, tmp_path)
    replica, _ = opened(folder)
    expected = kept_folder.expected()
    assert replica.stats().indexed_points > 1000, "the codes were read, not made again"
    assert replica.term == 4

    points, _ = replica.scan("", 10_000, with_vector=True)
    assert {point.id: (point.vector, point.payload) for point in points} == expected
    wanted = ["p7", "p15", "p1255"]
    queries = np.stack([np.frombuffer(expected[name][0], np.float32) for name in wanted])
    matrix = np.stack([np.frombuffer(one, np.float32) for one, _ in expected.values()]).astype(np.float64)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    best = np.sort(unit @ (queries / np.linalg.norm(queries, axis=1, keepdims=True)).T.astype(np.float64), axis=0)[
        ::-1
    ][:5].T
    for options in ({"exact": True}, {"nprobe": 8, "oversample": 300}):
        hits = replica.search(queries, 5, **options)
        np.testing.assert_allclose(hits.scores.reshape(3, 5), best, rtol=1e-6)

    replica.commit([kept_folder.upsert(range(3000, 3010))], term=5)
    for step in range(1, 20):
        maintain(replica, 1000.0 * step)
    assert replica.settled
    replica.close()
    again, _ = opened(folder)
    assert again.stats().points == len(expected) + 10
    again.close()


def test_a_folder_from_before_blocks_had_checksums_gets_them_once(tmp_path: Path) -> None:
    folder = unpacked(kept_folder.ARCHIVES[0], tmp_path)
    assert not list(folder.rglob("sums"))
    opened(folder)[0].close()
    (sums,) = folder.rglob("sums")
    with tarfile.open(kept_folder.ARCHIVES[1]) as tar:
        (name,) = (one for one in tar.getnames() if one.endswith("/sums"))
        kept = tar.extractfile(name)
        assert kept is not None
        assert sums.read_bytes() == kept.read()
    written = sums.stat()
    opened(folder)[0].close()
    assert (sums.stat().st_ino, sums.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_folder_from_before_blocks_had_checksums_is_refused_where_its_vectors_are_damaged(tmp_path: Path) -> None:
    folder = unpacked(kept_folder.ARCHIVES[0], tmp_path)
    (vectors,) = folder.rglob("vectors")
    content = bytearray(vectors.read_bytes())
    content[len(content) // 3] ^= 0x40
    vectors.write_bytes(content)
    with pytest.raises(DataLoss, match=r"segments/1/vectors does not match its checksum$"):
        opened(folder)
    assert not list(folder.rglob("sums"))


def of_version_2(path: Path, kind: str) -> None:
    fields = records.read(path, kind, 1)
    path.write_bytes(records.encode(kind, 2, fields))


def open_node(folder: Path) -> None:
    data = DataDir(folder)
    try:
        data.known_collections()
    finally:
        data.close()


@pytest.mark.parametrize(
    ("name", "kind", "read", "refusal"),
    [
        ("node.json", "vectorfleet node", open_node, DataDirError),
        (f"replicas/{kept_folder.UID}/collection.json", "vectorfleet collection", open_node, DataDirError),
        (f"replicas/{kept_folder.UID}/0/replica.json", "vectorfleet replica", opened, DataLoss),
    ],
)
def test_a_record_of_an_unknown_version_is_refused_and_nothing_changes(
    folder: Path, name: str, kind: str, read: Callable[[Path], object], refusal: type[Exception]
) -> None:
    of_version_2(folder / name, kind)
    before = tree(folder)
    with pytest.raises(refusal, match=rf"{name} has format version 2; this release reads version 1"):
        read(folder)
    assert tree(folder) == before


def test_a_codebook_of_an_unknown_version_is_refused(folder: Path) -> None:
    (path,) = folder.rglob("*.codebook")
    content = bytearray(path.read_bytes())
    assert content[8] == files.FORMAT_VERSION
    content[8] = 2
    with pytest.raises(DataLoss, match=r"codebook version 1 .* has format version 2; this release reads version 1"):
        Codebook.load(bytes(content), 1)


def test_segments_of_an_unknown_version_are_refused_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    folder = tmp_path / "replica"
    replica = Replica.open(folder, kept_folder.IDENTITY, kept_folder.SETTINGS)
    replica.commit([kept_folder.upsert(range(10))], term=1)
    maintain(replica, 0.0)
    maintain(replica, 100.0)
    assert replica.stats().segments == 1
    replica.close()
    monkeypatch.undo()
    before = tree(folder / "segments")
    with pytest.raises(DataLoss, match=r"segments/1/\w+ has format version 2; this release reads version 1"):
        Replica.open(folder, kept_folder.IDENTITY, kept_folder.SETTINGS)
    assert tree(folder / "segments") == before


def test_a_manifest_of_an_unknown_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = folder.rglob("replica.json")
    record.unlink()  # it would be refused before the store is opened
    monkeypatch.setattr(recovery, "FORMAT_VERSION", 2)
    with pytest.raises(DataLoss, match=r"the manifest in .* has format version 1; this release reads version 2"):
        opened(folder)


def test_the_fixture_is_what_its_script_makes(tmp_path: Path, folder: Path) -> None:
    kept_folder.write(tmp_path / "made")
    made, kept = tree(tmp_path / "made" / "killed"), tree(folder)
    ours = [name for name in kept if "/store/" not in name]
    assert len(ours) > 8
    assert data_dir.FORMAT_VERSION == recovery.FORMAT_VERSION == files.FORMAT_VERSION == 1, (
        "make a new fixture beside this one"
    )
    assert {name for name in made if "/store/" not in name} == set(ours)
    shutil.rmtree(tmp_path / "made")
