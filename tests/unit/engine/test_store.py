"""RocksDB as it is used here: what it would pass over in silence is said."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shard_server.engine.store import Store, write_ahead_bytes
from vectorfleet.errors import DataLoss, Unavailable

COUNT = 3000


def filled(folder: Path) -> None:
    store = Store(folder, create=True)
    batch = store.batch()
    for number in range(COUNT):
        batch.put_point(b"%06d" % number, number, b"payload %d" % (number * 7919))
        batch.put_tombstones(1, [number])
    batch.write(sync=True)
    store.flush()
    store.close()


def test_a_walk_that_meets_a_damaged_block_does_not_just_end(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    for path in sorted((tmp_path / "store").glob("*.sst")):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 3] ^= 0x10
        path.write_bytes(raw)
    store = Store(tmp_path / "store", create=False)
    for walk in (store.points_after(b""), store.tombstones()):
        with pytest.raises(DataLoss, match=r"block checksum mismatch.*\.sst"):
            list(walk)
    with pytest.raises(DataLoss, match=r"block checksum mismatch.*\.sst"):
        [store.exists(b"%06d" % number) for number in range(COUNT)]
    store.close()


def test_a_store_is_made_only_where_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="cannot be opened"):
        Store(tmp_path / "store", create=False)
    filled(tmp_path / "store")
    (tmp_path / "store" / "CURRENT").unlink()
    with pytest.raises(DataLoss, match="CURRENT"):
        Store(tmp_path / "store", create=False)


def test_a_store_in_use_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    with pytest.raises(Unavailable, match="still in use"):
        Store(tmp_path / "store", create=False)
    store.close()
    Store(tmp_path / "store", create=False).close()


def test_write_ahead_logs_may_go_while_they_are_counted(tmp_path: Path) -> None:
    for number in (7, 8, 9):
        (tmp_path / f"{number:06}.log").write_bytes(bytes(number))
    (tmp_path / "000010.log").symlink_to(tmp_path / "gone")
    assert write_ahead_bytes(tmp_path) == 24
    assert write_ahead_bytes(tmp_path, 8) == 17


def test_families_move_to_files_together(tmp_path: Path) -> None:
    """Else, stopped half-way through, a record that failed counts for some families and not for others."""
    store = Store(tmp_path / "store", create=True)
    batch = store.batch()
    batch.put_tombstones(1, [3])
    batch.put_applied(7)
    batch.write(sync=True)
    for number in itertools.count():  # until there are so many points that RocksDB moves them by itself
        batch = store.batch()
        batch.put_point(b"%d" % number, 7, bytes(1 << 20))
        batch.write(sync=False)
        if store._points.property_value("rocksdb.num-files-at-level0") != "0":
            break
        assert number < 1000
    shutil.copytree(tmp_path / "store", tmp_path / "files alone", ignore=shutil.ignore_patterns("*.log", "LOCK"))
    store.close()
    copy = Store(tmp_path / "files alone", create=False)
    assert (copy.version_of(b"0"), list(copy.tombstones()), copy.applied()) == (7, [(1, 3)], 7)
    copy.close()


@pytest.mark.parametrize("moved", [Store.flush, Store.shrink_log], ids=["flush", "shrink_log"])
def test_what_moves_the_families_to_files_moves_them_together(tmp_path: Path, moved: Callable[[Store], None]) -> None:
    store = Store(tmp_path / "store", create=True)
    batch = store.batch()
    batch.put_tombstones(1, [3])
    batch.put_applied(7)
    batch.put_point(b"a", 7, b"")
    batch.write(sync=True)
    families = store._log, store._points, store._tombstones, store._meta
    for family in families:
        assert family.property_value("rocksdb.num-files-at-level0") == "0"
    flushed_one_by_one: list[object] = []
    store._points = _Watched(store._points, flushed_one_by_one)
    store._tombstones = _Watched(store._tombstones, flushed_one_by_one)
    moved(store)
    store._points, store._tombstones = families[1:3]
    assert not flushed_one_by_one
    shutil.copytree(tmp_path / "store", tmp_path / "files alone", ignore=shutil.ignore_patterns("*.log", "LOCK"))
    store.close()
    copy = Store(tmp_path / "files alone", create=False)
    assert (copy.version_of(b"a"), list(copy.tombstones()), copy.applied()) == (7, [(1, 3)], 7)
    copy.close()


class _Watched:
    """A column family that notes who flushes it alone."""

    def __init__(self, family: object, flushed: list[object]) -> None:
        self._family = family
        self._flushed = flushed

    def flush(self) -> None:
        self._flushed.append(self._family)

    def __getattr__(self, name: str) -> object:
        return getattr(self._family, name)
