"""A flipped bit, a cut and a missing file, in each kind of file: found and named, or harmless; never a wrong answer."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shard_server.engine.index import Codebook
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from tests.killed import copy_of_open
from tests.unit.engine.conftest import codebook_for, delete, identity, settle, upsert
from vectorfleet.errors import DataLoss
from vectorfleet.v1 import types_pb2

SETTINGS = EngineSettings(seal_points=100_000, min_free_bytes=0)
DIM = 4
RANDOM = np.random.default_rng(11)
VECTORS = RANDOM.standard_normal((1400, DIM)).astype(np.float32)
Content = dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Codebook, Content]:
    """A killed replica with an encoded segment, tombstones, tables, and a log whose tail is in no table."""
    folder = tmp_path_factory.mktemp("whole") / "replica"
    killed = folder.with_name("killed")
    about = identity(DIM, types_pb2.METRIC_COSINE)
    replica = Replica.open(folder, about, SETTINGS)
    points = {f"{number:04d}": vector for number, vector in enumerate(VECTORS)}
    names = list(points)
    replica.commit([upsert({name: points[name] for name in names[:1300]})], term=1)
    codebook = codebook_for(replica)
    replica.use_codebook(codebook)
    settle(replica)
    replica.commit([delete(*names[:40])], term=1)
    replica.close()
    replica = Replica.open(folder, about, SETTINGS, codebook)  # what the log held goes into tables
    for first in range(1300, 1400, 20):
        replica.commit([upsert({name: points[name] for name in names[first : first + 20]})], term=1)
    replica.commit([delete(*names[40:50])], term=1)
    content = {name: points[name].tobytes() for name in names[50:]}
    copy_of_open(folder, killed)  # closing would put the log's tail into tables
    replica.close()
    return killed, codebook, content


def exercise(folder: Path, codebook: Codebook, content: Content) -> DataLoss | None:
    """Opens, reads everything, and does all background work; returns what damage was found. Whatever is answered is right."""
    try:
        replica = Replica.open(folder, identity(DIM, types_pb2.METRIC_COSINE), SETTINGS, codebook)
    except DataLoss as error:
        return error
    try:
        settle(replica)
        points, _ = replica.scan("", 10_000, with_vector=True)
        hits = replica.search(VECTORS[:3], 10_000, exact=True)
        assert {point.id: point.vector for point in points} == content
        assert sorted(hits.ids[: len(content)]) == sorted(content)
        assert replica.stats().indexed_points >= 1250
    except DataLoss as error:
        return error
    finally:
        replica.close()
    return None


def flipped(raw: bytes, position: int) -> bytes:
    changed = bytearray(raw)
    changed[position] ^= 1 << (position % 8)
    return bytes(changed)


TRUTH = ["vectors", "ids", "hashes", "lengths", "replica.json", "*.log", "MANIFEST-*", "CURRENT"]
DERIVED = ["index-1", "terms", "sums", "OPTIONS-*", "IDENTITY", "LOG", "LOCK", "acknowledged"]
EITHER = ["*.sst", "rocksdict-config.json"]
"""Not each of their bits says something."""


def the_file(folder: Path, kind: str) -> Path:
    """The newest write-ahead log; else the largest file of its kind."""
    found = sorted(folder.rglob(kind), key=lambda path: path.name if kind == "*.log" else path.stat().st_size)
    assert found, f"there is no {kind}"
    return found[-1]


@pytest.mark.parametrize("kind", [*TRUTH, *DERIVED, *EITHER])
def test_a_flipped_bit_is_found_or_harmless(whole: tuple[Path, Codebook, Content], tmp_path: Path, kind: str) -> None:
    original, codebook, content = whole
    raw = the_file(original, kind).read_bytes()
    positions = [0, 9, len(raw) // 2, len(raw) - 1, *np.random.default_rng(7).integers(0, len(raw) or 1, 4)]
    assert raw or kind == "LOCK"
    complaints = []
    for number, position in enumerate(positions if raw else []):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        path = the_file(folder, kind)
        path.write_bytes(flipped(raw, int(position)))
        error = exercise(folder, codebook, content)
        if error is not None:
            named = {"*.log": "write-ahead log", "CURRENT": "store"}.get(kind, path.name)
            assert named in error.message, f"bit at {position} of {path.name}: {error.message}"
        complaints.append(error)
        shutil.rmtree(folder, ignore_errors=True)  # RocksDB may be deleting files of the store that it refused, too
    if kind in TRUTH:
        assert all(complaints), (
            f"not found at {[at for at, error in zip(positions, complaints, strict=True) if not error]}"
        )
    if kind in DERIVED:
        assert not any(complaints)


@pytest.mark.parametrize("kind", [*TRUTH, *DERIVED, *EITHER])
@pytest.mark.parametrize(
    "harm",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])],
    ids=["lost", "cut"],
)
def test_a_lost_or_shortened_file_is_found_or_harmless(
    whole: tuple[Path, Codebook, Content], tmp_path: Path, kind: str, harm: Callable[[Path], object]
) -> None:
    original, codebook, content = whole
    folder = tmp_path / "replica"
    shutil.copytree(original, folder)
    harm(the_file(folder, kind))
    error = exercise(folder, codebook, content)
    if kind in DERIVED or (kind == "replica.json" and harm is Path.unlink):
        assert error is None
    elif kind not in ("MANIFEST-*", "rocksdict-config.json"):  # a part of them may be lost without harm
        assert error is not None


CUT_WHILE_MAPPED = """
import os, sys
from pathlib import Path
from shard_server.engine.replica import Replica
from tests.unit.engine.test_corruption import DIM, SETTINGS, VECTORS, identity, the_file, types_pb2
replica = Replica.open(Path(sys.argv[1]), identity(DIM, types_pb2.METRIC_COSINE), SETTINGS)
replica.search(VECTORS[:1], 10, exact=True)
os.truncate(the_file(Path(sys.argv[1]), "vectors"), 64)
replica.search(VECTORS[:1], 10, exact=True)
"""


def test_a_file_cut_while_it_is_mapped_ends_the_process_and_costs_one_replica_at_the_next_start(
    whole: tuple[Path, Codebook, Content], tmp_path: Path
) -> None:
    original, codebook, content = whole
    folder = tmp_path / "replica"
    shutil.copytree(original, folder)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", CUT_WHILE_MAPPED, str(folder)], cwd=root, timeout=120, check=False)
    assert done.returncode == -signal.SIGBUS
    error = exercise(folder, codebook, content)
    assert error is not None
    assert "vectors has 64 bytes where the manifest says" in error.message
