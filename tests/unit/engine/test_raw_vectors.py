"""Blocks of raw vectors: what is asked for is compared with its checksum first, once, and nothing else is read for it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shard_server.engine import files, raw_vectors
from shard_server.engine.raw_vectors import BlockSums, RawVectors, rows_per_block
from vectorfleet.errors import DataLoss

RANDOM = np.random.default_rng(3)


def nothing() -> None:
    """No check."""


class Written:
    """A file of vectors, and a copy of what it holds."""

    def __init__(self, path: Path, rows: int, dim: int) -> None:
        self.path, self.rows, self.dim = path, rows, dim
        self.truth = RANDOM.standard_normal((rows, dim)).astype(np.float32)
        self.sums = BlockSums(dim)
        content = files.header(b"VF-VECTR", dim, rows) + self.truth.tobytes()
        path.write_bytes(content)
        self.sums.add(content)
        self.block_rows = rows_per_block(dim)
        self.table = np.frombuffer(self.sums.finish(), "<u8")

    def open(self) -> RawVectors:
        mapped = np.memmap(self.path, np.float32, "r", files.HEADER_BYTES, (self.rows, self.dim))
        return RawVectors(self.path, np.asarray(mapped).view(np.ndarray), self.table, self.block_rows)

    def flip(self, position: int) -> None:
        """A bit of one byte, in place: what is mapped sees it."""
        with self.path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 0x04]))

    def rows_of(self, block: int) -> NDArray[np.int64]:
        return np.arange(block * self.block_rows, min(self.rows, (block + 1) * self.block_rows))


SHAPES = [(1, 1), (9000, 1), (4096, 3), (5000, 8), (700, 100), (97, 128), (40, 1000), (7, 4096)]


@pytest.fixture(params=SHAPES, ids=str)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    return Written(tmp_path / "vectors", *request.param)


def bytes_of_block(written: Written, block: int) -> range:
    row_bytes = 4 * written.dim
    rows = written.rows_of(block)
    first = files.HEADER_BYTES + int(rows[0]) * row_bytes if block else 0
    return range(first, files.HEADER_BYTES + (int(rows[-1]) + 1) * row_bytes)


def test_a_damaged_block_is_refused_by_its_rows_and_the_others_answer(written: Written) -> None:
    for damaged in range(len(written.table)):
        place = bytes_of_block(written, damaged)
        for position in (place[0], place[len(place) // 2], place[-1]):
            written.flip(position)
            vectors = written.open()
            for block in RANDOM.permutation(len(written.table)).tolist():
                rows = RANDOM.permutation(written.rows_of(block))[:5]
                if block == damaged:
                    mine = written.rows_of(block)
                    for _ in range(2):
                        said = f"vectors does not match its checksum in rows {mine[0]} to {mine[-1]}$"
                        with pytest.raises(DataLoss, match=said):
                            vectors[rows]
                else:
                    assert np.array_equal(vectors[rows], written.truth[rows])
            assert vectors.pending
            with pytest.raises(DataLoss, match="checksum in rows"):
                list(vectors.verifying())
            with pytest.raises(DataLoss, match="checksum in rows"):
                vectors[:]
            written.flip(position)


def test_slices_and_matrices_of_rows_ask_for_their_blocks_alone(tmp_path: Path) -> None:
    written = Written(tmp_path / "vectors", 97, 128)
    assert (written.block_rows, len(written.table)) == (32, 4)
    written.flip(bytes_of_block(written, 2)[7])  # rows 64 to 95
    sound: list[slice] = [slice(0, 64), slice(32, 33), slice(96, 97), slice(96, 200), slice(64, 64)]
    for part in sound:
        assert np.array_equal(written.open()[part], written.truth[part])
    for part in (slice(0, 65), slice(95, 97), slice(64, 96), slice(None)):
        with pytest.raises(DataLoss):
            written.open()[part]
    candidates = np.asarray([[5, 63, -1], [-1, -1, 96]])
    assert np.array_equal(written.open().holding(candidates, nothing)[candidates[0, :2]], written.truth[[5, 63]])
    with pytest.raises(DataLoss):
        written.open().holding(np.asarray([[5, 63, -1], [-1, 95, 96]]), nothing)
    assert len(written.open()[np.empty(0, np.int64)]) == 0


def test_each_block_is_read_once_and_the_last_one_ends_it(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = os.pread

    def counted(descriptor: int, size: int, start: int) -> bytes:
        content = real(descriptor, size, start)
        read.append(len(content))
        return content

    monkeypatch.setattr(raw_vectors.os, "pread", counted)
    vectors = written.open()
    descriptor = vectors._file
    assert descriptor is not None
    for rows in np.array_split(RANDOM.permutation(written.rows), 7):
        assert np.array_equal(vectors[rows], written.truth[rows])
    assert not vectors.pending
    assert sum(read) == written.path.stat().st_size
    assert list(vectors.verifying()) == []
    number = descriptor._descriptor
    del descriptor
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_the_background_reads_what_nobody_asked_for(tmp_path: Path) -> None:
    written = Written(tmp_path / "vectors", 9000, 128)
    vectors = written.open()
    size = written.path.stat().st_size
    first = len(bytes_of_block(written, 3)) + len(bytes_of_block(written, 200))
    vectors[np.asarray([3 * 32, 3 * 32 + 1, 200 * 32])]
    assert sum(vectors.verifying()) == size - first
    assert not vectors.pending


def test_what_was_opened_is_verified_though_its_name_is_gone(written: Written) -> None:
    vectors = written.open()
    written.path.unlink()
    assert np.array_equal(vectors[:], written.truth)
    assert not vectors.pending


def test_what_was_found_whole_is_not_looked_at_again(tmp_path: Path) -> None:
    """So it is said in the guarantees: what goes bad later is found at the next opening."""
    written = Written(tmp_path / "vectors", 97, 128)
    vectors = written.open()
    before = vectors[np.asarray([40])].copy()
    written.flip(bytes_of_block(written, 1)[5])
    assert not np.array_equal(vectors[:64], written.truth[:64])
    written.flip(bytes_of_block(written, 1)[5])
    assert np.array_equal(vectors[np.asarray([40])], before)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [(errno.EIO, DataLoss, "vectors cannot be read: Input/output error"), (errno.ENOMEM, OSError, "Cannot allocate")],
)
def test_a_block_that_cannot_be_read_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, raised: type[Exception], said: str
) -> None:
    written = Written(tmp_path / "vectors", 97, 128)
    vectors = written.open()

    def failing(*_: int) -> bytes:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(raw_vectors.os, "pread", failing)
        with pytest.raises(raised, match=said):
            vectors[:3]
    assert np.array_equal(vectors[:3], written.truth[:3]), "it is asked again"


def test_a_file_cut_short_is_damage(written: Written) -> None:
    vectors = written.open()
    os.truncate(written.path, written.path.stat().st_size - 1)
    with pytest.raises(DataLoss, match="does not match its checksum"):
        vectors[np.asarray([written.rows - 1])]


def test_a_long_verification_is_asked_whether_to_go_on(tmp_path: Path) -> None:
    written = Written(tmp_path / "vectors", 9000, 128)
    vectors = written.open()
    calls = []

    def stop_at_the_third() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise TimeoutError

    every_tenth_block = np.arange(0, 9000, 320)
    with pytest.raises(TimeoutError):
        vectors.holding(every_tenth_block, stop_at_the_third)
    assert int(vectors._verified.sum()) == 2
    assert np.array_equal(vectors.holding(every_tenth_block, nothing)[every_tenth_block], written.truth[::320])


def cuts(content: bytes) -> Iterator[list[bytes | memoryview]]:
    yield [content]
    yield [content[:64], content[64:]]
    yield [memoryview(content)[at : at + 1000] for at in range(0, len(content), 1000)]
    yield [content[:16_448], content[16_448:32_832], content[32_832:]]
    yield [b"", content, b""]


def test_sums_do_not_depend_on_how_the_content_is_cut(written: Written) -> None:
    assert len(written.table) == -(-written.rows // written.block_rows)
    for parts in cuts(written.path.read_bytes()):
        sums = BlockSums(written.dim)
        for part in parts:
            sums.add(part)
        assert sums.finish() == written.table.tobytes()


@pytest.mark.parametrize("attempt", range(5))
def test_threads_verify_beside_one_another(tmp_path: Path, attempt: int) -> None:
    written = Written(tmp_path / "vectors", 20_000, 128)
    vectors = written.open()
    start = threading.Barrier(4)

    def read(seed: int) -> bool:
        start.wait()
        random = np.random.default_rng(seed)
        several = (random.integers(0, written.rows, 200) for _ in range(60))
        return all(np.array_equal(vectors[rows], written.truth[rows]) for rows in several)

    def scan() -> bool:
        start.wait()
        return sum(vectors.verifying()) >= 0

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(read, 3 * attempt + number) for number in range(3)] + [pool.submit(scan)]
        assert all(one.result() for one in running)
    assert not vectors.pending


def test_a_hint_that_the_system_does_not_take_costs_nothing(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError(errno.EINVAL, "no such advice here")

    monkeypatch.setattr(os, "posix_fadvise", refused)
    every = np.arange(written.rows)
    np.testing.assert_array_equal(
        written.open()[every[:: 2 * written.block_rows]], written.truth[:: 2 * written.block_rows]
    )
