"""Raw vectors that are damaged when a replica is opened: whatever asks for them first is refused, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shard_server.engine import files, segment
from shard_server.engine.index import Codebook, train_codebook
from shard_server.engine.raw_vectors import rows_per_block
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import delete, identity, maintain, settle, upsert
from vectorfleet.errors import DataLoss
from vectorfleet.v1 import types_pb2

L2, DOT, COSINE = types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE
DIM, BLOCKS = 64, 20
BLOCK_ROWS = rows_per_block(DIM)
ROWS = BLOCKS * BLOCK_ROWS
SETTINGS = EngineSettings(seal_points=100_000, min_free_bytes=0)
NAMES = [f"{row:05d}" for row in range(ROWS)]
EVERY_TENTH = types_pb2.Filter(field={"path": "n", "equals": {"values": [{"int_value": 0}]}})


def clumps() -> NDArray[np.float32]:
    """Each block's rows are a clump of their own, far from the others: a query at one has no business with another."""
    random = np.random.default_rng(9)
    centres = 50 * random.standard_normal((BLOCKS, 1, DIM))
    points = centres + random.standard_normal((BLOCKS, BLOCK_ROWS, DIM))
    return points.reshape(ROWS, DIM).astype(np.float32)


VECTORS = clumps()


@dataclass(frozen=True)
class Whole:
    """A closed replica of one encoded segment whose rows stand in the order of `NAMES`."""

    folder: Path
    codebook: Codebook
    metric: int


@pytest.fixture(scope="module", params=[L2, DOT, COSINE], ids=["l2", "dot", "cosine"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, metric = tmp_path_factory.mktemp("whole") / "replica", request.param
    about = identity(DIM, metric)
    replica = Replica.open(folder, about, SETTINGS)
    payloads = {name: b'{"n": %d}' % (row % 10) for row, name in enumerate(NAMES)}
    replica.commit([upsert(dict(zip(NAMES, VECTORS, strict=True)), payloads)], term=1)
    content = train_codebook(replica.sample(ROWS, 1), kind=about.kind, metric=metric, nlist=BLOCKS, m=16, seed=1)
    codebook = Codebook.load(content, 1)
    replica.use_codebook(codebook)
    settle(replica)
    assert the_segment(replica).codebook_version == 1
    replica.close()
    return Whole(folder, codebook, metric)


def damage(folder: Path, blocks: range) -> None:
    """Flips one bit in each of these blocks."""
    (path,) = folder.rglob("segments/*/vectors")
    content = bytearray(path.read_bytes())
    block_bytes = 4 * DIM * BLOCK_ROWS
    for block in blocks:
        content[files.HEADER_BYTES + block * block_bytes + 101 + 4 * block] ^= 0x40
    path.write_bytes(content)


Damaged = Callable[..., Replica]


@pytest.fixture
def damaged(whole: Whole, tmp_path: Path) -> Iterator[Damaged]:
    """Opens a copy with some blocks damaged."""
    opened: list[Replica] = []

    def make(blocks: range, *, encoded: bool = True, settings: EngineSettings = SETTINGS) -> Replica:
        folder = tmp_path / str(len(opened))
        shutil.copytree(whole.folder, folder)
        damage(folder, blocks)
        codebook = whole.codebook if encoded else None
        opened.append(Replica.open(folder, identity(DIM, whole.metric), settings, codebook))
        return opened[-1]

    yield make
    for replica in opened:
        replica.close()


def the_segment(replica: Replica) -> segment.Segment:
    (part,) = replica._state.segments
    return part.segment


def rewrite(replica: Replica) -> None:
    """What a merge does."""
    one = the_segment(replica)
    source = segment.Source(one.vectors, np.arange(0, ROWS, 7), one.ids, (one.terms,))
    try:
        segment.write_segment(one.directory.parent, 99, [source], DIM, one.metric, None)
    finally:
        assert not (one.directory.parent / "99").exists(), "what is damaged was given a new checksum"


def improve(replica: Replica) -> None:
    for step in range(10):
        maintain(replica, 10.0 * step)


QUERIES = VECTORS[[3, ROWS // 2, ROWS - 1]]
FIRST: dict[str, Callable[[Replica], object]] = {
    "search": lambda replica: replica.search(QUERIES, 5),
    "one query": lambda replica: replica.search(QUERIES[:1], 1, nprobe=1),
    "exact search": lambda replica: replica.search(QUERIES, 5, exact=True),
    "search for all": lambda replica: replica.search(QUERIES[:1], 10_000, exact=True),
    "filter": lambda replica: replica.search(QUERIES, 5, wanted=EVERY_TENTH),
    "get": lambda replica: replica.fetch(NAMES[:1], with_vector=True),
    "scroll": lambda replica: replica.scan("", 3, with_vector=True),
    "sample for a training": lambda replica: replica.sample(10, seed=1),
    "encoding": lambda replica: segment.write_index(the_segment(replica), replica._state.codebooks[1]),
    "merge": rewrite,
    "background": improve,
}


@pytest.mark.parametrize("first", FIRST)
def test_whatever_reads_damaged_vectors_first_is_refused(damaged: Damaged, first: str) -> None:
    replica = damaged(range(BLOCKS))
    with pytest.raises(DataLoss, match=r"segments/1/vectors does not match its checksum in rows \d+ to \d+"):
        FIRST[first](replica)


@pytest.mark.parametrize("first", ["search", "one query", "exact search", "filter"])
def test_so_is_a_search_of_a_segment_without_codes(damaged: Damaged, first: str) -> None:
    replica = damaged(range(BLOCKS), encoded=False)
    replica.commit([delete(*NAMES[: ROWS - BLOCK_ROWS // 2])] if first == "one query" else [delete("00001")], term=2)
    with pytest.raises(DataLoss, match="segments/1/vectors does not match its checksum"):
        FIRST[first](replica)


def test_what_needs_no_vectors_is_answered(damaged: Damaged) -> None:
    replica = damaged(range(BLOCKS))
    assert len(replica.fetch(NAMES[:10], with_vector=False)) == 10
    assert len(replica.scan("", 10, with_vector=False)[0]) == 10
    replica.commit([delete("00001"), upsert({"new": VECTORS[0]})], term=2)
    assert replica.fetch(["new"], with_vector=True)[0].vector == VECTORS[0].tobytes()
    assert replica.stats().points == ROWS


def test_one_damaged_block_never_gives_an_answer_and_the_others_do(damaged: Damaged, whole: Whole) -> None:
    victim = 7
    replica = damaged(range(victim, victim + 1))
    sound = scores_under(whole.metric)
    answered, complaints = [], set()
    for block in [victim, *range(BLOCKS)]:
        row = block * BLOCK_ROWS + 5
        try:
            hits = replica.search(VECTORS[row : row + 1], 10, nprobe=1)
        except DataLoss as error:
            complaints.add(error.message.partition(" in ")[2])
        else:
            answered.append(block)
            expected = sound(VECTORS[row], VECTORS[[int(name) for name in hits.ids]])
            np.testing.assert_allclose(hits.scores, expected, rtol=1e-5, atol=1e-5)
        read = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        if block == victim:
            with pytest.raises(DataLoss):
                replica.fetch(NAMES[read][:1], with_vector=True)
        else:
            points = replica.fetch(NAMES[read], with_vector=True)
            assert [point.vector for point in points] == [vector.tobytes() for vector in VECTORS[read]]
    assert complaints == {f"rows {victim * BLOCK_ROWS} to {(victim + 1) * BLOCK_ROWS - 1}"}
    assert victim not in answered
    assert len(answered) > BLOCKS // 2, "a search that does not need the block is answered"
    with pytest.raises(DataLoss):
        replica.search(VECTORS[:1], 1, exact=True)


def test_candidates_are_verified_before_they_are_compared_not_winners_alone(damaged: Damaged) -> None:
    """A damaged row might be lost to the comparison: the hits would all be whole, and not the nearest."""
    replica = damaged(range(7, 8))
    far = VECTORS[:1]  # all hits are of its own clump, and all rows are candidates
    with pytest.raises(DataLoss, match=f"in rows {7 * BLOCK_ROWS} to"):
        replica.search(far, 1, nprobe=BLOCKS, oversample=ROWS)


def scores_under(metric: int) -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]:
    def truth(query: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float64]:
        left, right = query.astype(np.float64), points.astype(np.float64)
        if metric == L2:
            return np.asarray(np.linalg.norm(right - left, axis=1))
        scores = right @ left
        if metric == COSINE:
            scores /= np.linalg.norm(right, axis=1) * np.linalg.norm(left)
        return np.asarray(scores)

    return truth


def test_what_is_whole_is_verified_once_in_the_background_or_by_whoever_comes_first(damaged: Damaged) -> None:
    replica = damaged(range(0), settings=replace(SETTINGS, verify_bytes_per_s=1))
    vectors = the_segment(replica).vectors
    assert vectors.pending
    replica.search(QUERIES, 5)
    replica.fetch(NAMES[:1], with_vector=True)
    assert vectors.pending, "they need few of the blocks"
    improve(replica)
    assert not vectors.pending
    replica.search(QUERIES, 5, exact=True)


def test_a_new_segment_is_read_back_before_it_counts(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replica = damaged(range(0))
    settle(replica)
    replica.commit([upsert({f"new-{row}": vector for row, vector in enumerate(VECTORS[:2000])})], term=2)
    real = segment.write_segment

    def spoilt(directory: Path, number: int, *arguments: object, **options: object) -> object:
        entry = real(directory, number, *arguments, **options)  # type: ignore[arg-type]
        path = directory / str(number) / "vectors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 0x08
        path.write_bytes(content)
        return entry

    with monkeypatch.context() as patched:
        patched.setattr(segment, "write_segment", spoilt)
        with pytest.raises(DataLoss, match="segments/2/vectors does not match its checksum"):
            settle(replica, 1e6)
    assert [part.segment.number for part in replica._state.segments] == [1]
    assert not list(tmp_path.rglob("segments/2"))
    found = replica.fetch(["new-0"], with_vector=True)
    assert found[0].vector == VECTORS[0].tobytes(), "the buffer and the log have them still"


def lose(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x02
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [lose, flip])
def test_lost_checksums_are_made_again_of_vectors_that_match_that_of_their_file(
    damaged: Damaged, whole: Whole, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "harmed"
    shutil.copytree(whole.folder, folder)
    (sums,) = folder.rglob("sums")
    before = sums.read_bytes()
    harm(sums)
    replica = Replica.open(folder, identity(DIM, whole.metric), SETTINGS, whole.codebook)
    assert sums.read_bytes() == before
    assert the_segment(replica).vectors[:].tobytes() == VECTORS.tobytes()
    replica.close()
    harm(sums)
    damage(folder, range(4, 5))
    with pytest.raises(DataLoss, match=r"segments/1/vectors does not match its checksum$"):
        Replica.open(folder, identity(DIM, whole.metric), SETTINGS, whole.codebook)
