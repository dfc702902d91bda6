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
from tests.fixtures import make_data_folder as release_1
from tests.unit.engine.conftest import maintain
from vectorfleet.errors import DataLoss


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder that release 1 left."""
    with tarfile.open(release_1.ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "data"


def tree(folder: Path) -> dict[str, str]:
    """Every file with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def opened(folder: Path) -> tuple[Replica, Codebook]:
    data = DataDir(folder, release_1.NODE)
    (record,) = data.known_collections()
    assert (record.name, record.uid, record.dim) == ("things", release_1.UID, release_1.DIM)
    assert record.codebook is not None
    content = CodebookStore(data.codebooks).load(record.uid, record.codebook.version, record.codebook.checksum)
    assert content is not None, "the codebook's file is not the one that the collection names"
    codebook = Codebook.load(content, record.codebook.version)
    try:
        return Replica.open(data.replica(record.uid, 0), release_1.IDENTITY, release_1.SETTINGS, codebook), codebook
    finally:
        data.close()


def test_the_folder_of_release_1_is_read_and_written_on(folder: Path) -> None:
    replica, _ = opened(folder)
    expected = release_1.expected()
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

    replica.commit([release_1.upsert(range(3000, 3010))], term=5)
    for step in range(1, 20):
        maintain(replica, 1000.0 * step)
    assert replica.settled
    replica.close()
    again, _ = opened(folder)
    assert again.stats().points == len(expected) + 10
    again.close()


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
        (f"replicas/{release_1.UID}/collection.json", "vectorfleet collection", open_node, DataDirError),
        (f"replicas/{release_1.UID}/0/replica.json", "vectorfleet replica", opened, DataLoss),
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
    replica = Replica.open(folder, release_1.IDENTITY, release_1.SETTINGS)
    replica.commit([release_1.upsert(range(10))], term=1)
    maintain(replica, 0.0)
    maintain(replica, 100.0)
    assert replica.stats().segments == 1
    replica.close()
    monkeypatch.undo()
    before = tree(folder / "segments")
    with pytest.raises(DataLoss, match=r"segments/1/\w+ has format version 2; this release reads version 1"):
        Replica.open(folder, release_1.IDENTITY, release_1.SETTINGS)
    assert tree(folder / "segments") == before


def test_a_manifest_of_an_unknown_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = folder.rglob("replica.json")
    record.unlink()  # it would be refused before the store is opened
    monkeypatch.setattr(recovery, "FORMAT_VERSION", 2)
    with pytest.raises(DataLoss, match=r"the manifest in .* has format version 1; this release reads version 2"):
        opened(folder)


def test_the_fixture_is_what_its_script_makes(tmp_path: Path, folder: Path) -> None:
    release_1.write(tmp_path / "made")
    made, kept = tree(tmp_path / "made" / "killed"), tree(folder)
    ours = [name for name in kept if "/store/" not in name]
    assert len(ours) > 8
    assert data_dir.FORMAT_VERSION == recovery.FORMAT_VERSION == files.FORMAT_VERSION == 1, (
        "make a new fixture beside this one"
    )
    assert {name for name in made if "/store/" not in name} == set(ours)
    shutil.rmtree(tmp_path / "made")
