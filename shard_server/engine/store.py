"""RocksDB, and the only module that knows it: a replica's log, its points, its tombstones and its manifest.

Column families: `log` (first seqno → LogEntry; this is the write-ahead log), `points` (id → version, payload),
`tombstones` (segment, row → nothing) and `meta` (the manifest, the applied seqno, the term). A log entry is on disk before
`append` returns. What `apply` writes is not synced: it follows its log entry in RocksDB's own write order, so that after
a crash the points are at most as new as the log, and the log's tail is applied again.

What RocksDB does by default, and what is done about it here:

* A flipped bit in its write-ahead log ends the recovery there, in silence, and every write behind it is gone. Only a record
  that the end of the file cuts short is forgiven here, for that is what a crash leaves; anything else is `DataLoss`.
* A missing CURRENT makes it create an empty database over the old one. A store is created only where the caller says so.
* An iterator that meets a damaged block just ends. Every walk asks for the iterator's status at its end.
* After a failed write it takes no more until it is opened again: `append` and `Batch.write` fail from then on.
* By itself it then moves one family after another to its files, and leaves the record that failed behind in the write-ahead log.
  Stopped half-way by a close or a crash, that record counts at the next opening for the other families alone: the log was let go,
  but the manifest that says where its points are was not there. All families move to files together, or none: `atomic_flush`.
* What was sealed or overwritten stays in its files until others come: a write-ahead log of many megabytes as long as one
  family's part of it is in memory only, a table until enough of them lie above one another. `shrink_*` give that back.
"""

from __future__ import annotations

import contextlib
import logging
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rocksdict

from vectorfleet.errors import DataLoss, InternalError, ResourceExhausted, Unavailable, VectorfleetError
from vectorfleet.internal.v1 import storage_pb2

_log = logging.getLogger(__name__)
_MANIFEST: Final = b"manifest"
_APPLIED: Final = b"applied"
_TERM: Final = b"term"
_U64: Final = struct.Struct(">Q")
_TOMBSTONE: Final = struct.Struct(">QQ")
_VERSION: Final = struct.Struct("<Q")
_WRITE_BUFFER_BYTES: Final = 32 << 20
_CACHE_SHARE: Final = 0.25
"""Of the memory of all stores; the rest is for what is not in their files yet."""
_ENTRIES: Final = re.compile(r"# entries=(\d+)")


@dataclass(frozen=True, slots=True)
class PointRecord:
    """What is kept of a point beside its vector."""

    version: int
    payload: bytes


class StoreMemory:
    """What all stores of a process share: a cache of blocks, and room for what they have not moved to their files yet."""

    def __init__(self, size: int) -> None:
        """Takes the bytes of both; a store that writes moves more to its files while all of them are near the limit."""
        self.cache = rocksdict.Cache(int(size * _CACHE_SHARE))
        self.buffers = rocksdict.WriteBufferManager(int(size * (1 - _CACHE_SHARE)), False)


class PointsSnapshot:
    """The points as they were at one moment, whatever is written later. Not to be walked: see `Store.points_after`."""

    def __init__(self, snapshot: Any) -> None:
        self._snapshot = snapshot

    def get(self, point_id: bytes) -> PointRecord | None:
        """Reads one point; None where it did not exist."""
        try:
            value = self._snapshot[point_id]
        except Exception as error:  # rocksdict has one class for all; only its words tell an absent key from a fault
            if str(error) == "key not found":
                return None
            raise _unreadable(error) from error
        return _record(value)

    def payload_of(self, point_id: bytes) -> bytes:
        """Reads a point's payload; empty where it has none, or does not exist."""
        record = self.get(point_id)
        return b"" if record is None else record.payload


class Batch:
    """Changes that take effect together or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch = rocksdict.WriteBatch(raw_mode=True)

    def put_point(self, point_id: bytes, version: int, payload: bytes) -> None:
        """Inserts or replaces a point."""
        self._batch.put(point_id, _VERSION.pack(version) + payload, self._store._points_handle)

    def delete_point(self, point_id: bytes) -> None:
        """Removes a point."""
        self._batch.delete(point_id, self._store._points_handle)

    def put_tombstones(self, segment: int, rows: Iterable[int]) -> None:
        """Marks rows of a segment as dead."""
        for row in rows:
            self._batch.put(_TOMBSTONE.pack(segment, row), b"", self._store._tombstones_handle)

    def drop_tombstones(self, segment: int) -> None:
        """Forgets a segment's tombstones, when the segment goes."""
        self._batch.delete_range(
            _TOMBSTONE.pack(segment, 0), _TOMBSTONE.pack(segment + 1, 0), self._store._tombstones_handle
        )

    def put_applied(self, seqno: int) -> None:
        """Notes up to where the log is applied."""
        self._batch.put(_APPLIED, _U64.pack(seqno), self._store._meta_handle)

    def put_manifest(self, manifest: storage_pb2.ReplicaManifest) -> None:
        """Replaces the manifest, and lets go of the log that it has sealed."""
        self._batch.put(_MANIFEST, manifest.SerializeToString(deterministic=True), self._store._meta_handle)
        if manifest.sealed_seqno:
            self._batch.delete_range(_U64.pack(0), _U64.pack(manifest.sealed_seqno + 1), self._store._log_handle)

    def write(self, *, sync: bool) -> None:
        """Makes the changes; with `sync`, durable before it returns.

        Raises:
            ResourceExhausted, Unavailable, DataLoss: it failed, and so will every write until the store is opened again.
                Whether these changes are found then is open.
        """
        self._store._write(self._batch, sync=sync)


class Store:
    """One replica's RocksDB."""

    def __init__(self, directory: Path, *, create: bool, memory: StoreMemory | None = None) -> None:
        """Opens it.

        Args:
            directory: its own.
            create: make it where it is missing.
            memory: shared with the process's other stores; None: RocksDB's defaults, of its own.

        Raises:
            DataLoss: its files are damaged or missing.
            ResourceExhausted: DISK_FULL; opening takes some room.
            Unavailable: it is open already, or was a moment ago and a reader still holds it.
        """
        families = {name: _options(name, memory, create=create) for name in ("log", "points", "tombstones", "meta")}
        self._directory = directory
        try:
            self._db = rocksdict.Rdict(
                str(directory), _options("default", memory, create=create), column_families=families
            )
            self._log = self._db.get_column_family("log")
            self._points = self._db.get_column_family("points")
            self._tombstones = self._db.get_column_family("tombstones")
            self._meta = self._db.get_column_family("meta")
        except Exception as error:
            raise _not_opened(error, directory) from error
        self._log_handle = self._db.get_column_family_handle("log")
        self._points_handle = self._db.get_column_family_handle("points")
        self._tombstones_handle = self._db.get_column_family_handle("tombstones")
        self._meta_handle = self._db.get_column_family_handle("meta")
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True
        self._unsynced = rocksdict.WriteOptions()

    def batch(self) -> Batch:
        """Begins a batch."""
        return Batch(self)

    def append(self, entries: Sequence[storage_pb2.LogEntry], *, term_changed: bool) -> None:
        """Appends to the log: one group commit, on disk when it returns. Raises as `Batch.write` does."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for entry in entries:
            batch.put(_U64.pack(entry.first_seqno), entry.SerializeToString(), self._log_handle)
        if term_changed:
            batch.put(_TERM, _U64.pack(entries[-1].term), self._meta_handle)
        self._write(batch, sync=True)

    def _write(self, batch: Any, *, sync: bool) -> None:
        try:
            self._db.write(batch, self._synced if sync else self._unsynced)
        except Exception as error:
            raise _not_written(error, self._directory) from error

    def log_after(self, seqno: int) -> Iterator[storage_pb2.LogEntry]:
        """Reads the log's entries above `seqno`, in order."""
        for key, value in _walk(self._log, _U64.pack(seqno + 1)):
            try:
                entry = storage_pb2.LogEntry.FromString(value)
            except Exception as error:
                raise DataLoss(
                    f"log entry {_U64.unpack(key)[0]} in {self._directory} cannot be read: {error}"
                ) from error
            yield entry

    def exists(self, point_id: bytes) -> bool:
        """Whether a point of this id is there now. Raises `DataLoss`, as every read does."""
        return _get(self._points, point_id) is not None

    def points(self) -> PointsSnapshot:
        """The points as they are now, for as long as the snapshot is held."""
        return PointsSnapshot(self._points.snapshot())

    def points_after(self, point_id: bytes) -> Iterator[tuple[bytes, PointRecord]]:
        """Walks the points whose id is above `point_id`, in bytewise order, as they are at the moment of this call.

        An iterator of rocksdict's snapshots shows what was written after the snapshot, too: one moment for a walk and for
        anything else is to be had only while nobody writes.
        """
        items = _walk(self._points, point_id)
        return ((key, _record(value)) for key, value in items if key != point_id)

    def version_of(self, point_id: bytes) -> int:
        """The point's version; 0 where it does not exist."""
        value = _get(self._points, point_id)
        return 0 if value is None else int(_VERSION.unpack_from(value)[0])

    def tombstones(self) -> Iterator[tuple[int, int]]:
        """All (segment, row) that are dead."""
        for key, _ in _walk(self._tombstones, b""):
            segment, row = _TOMBSTONE.unpack(key)
            yield segment, row

    def manifest(self) -> storage_pb2.ReplicaManifest | None:
        """The manifest; None in a new store. Raises `DataLoss`."""
        value = _get(self._meta, _MANIFEST)
        if value is None:
            return None
        try:
            return storage_pb2.ReplicaManifest.FromString(value)
        except Exception as error:
            raise DataLoss(f"the manifest in {self._directory} cannot be read: {error}") from error

    def applied(self) -> int:
        """Up to where the log is applied."""
        value = _get(self._meta, _APPLIED)
        return 0 if value is None else int(_U64.unpack(value)[0])

    def term(self) -> int:
        """The term of the newest log entry ever written."""
        value = _get(self._meta, _TERM)
        return 0 if value is None else int(_U64.unpack(value)[0])

    @property
    def log_bytes(self) -> int:
        """What the log takes on disk, RocksDB's write-ahead logs among it; not what is to be removed at any moment."""
        needed = int(self._db.property_int_value("rocksdb.min-log-number-to-keep") or 0)
        return _table_bytes(self._log) + write_ahead_bytes(self._directory, needed)

    def points_bytes(self, points: int) -> tuple[int, int]:
        """What the tables of points take, and how much of it for what was overwritten or deleted, of so many points there are."""
        counted = _ENTRIES.search(self._points.property_value("rocksdb.aggregated-table-properties") or "")
        entries, size = int(counted[1]) if counted else 0, _table_bytes(self._points)
        return size, int(size * max(0.0, 1 - points / entries)) if entries else 0

    def shrink_log(self) -> None:
        """Moves what is in memory to files, and gives back what they hold of the sealed log, as far as no reader wants it.

        Raises:
            ResourceExhausted, Unavailable, DataLoss: as `Batch.write`.
        """
        self._compact(self._log)

    def shrink_points(self) -> None:
        """Writes the tables of points again without what was overwritten or deleted. Raises as `Batch.write`."""
        self._compact(self._points)

    def _compact(self, family: Any) -> None:
        options = rocksdict.CompactOptions()
        options.set_exclusive_manual_compaction(False)  # one that writers wait for may run beside
        # Also what lies at the bottom already: a reader may have kept it there the last time.
        options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force_optimized())
        try:
            family.compact_range(None, None, options)
        except Exception as error:
            raise _not_written(error, self._directory) from error

    def flush(self) -> None:
        """Moves what is in RocksDB's memory to its files, so that a checkpoint soon after has little to do."""
        # The smallest family: before a compaction all of them move, together; RocksDB's own call would move one.
        self._compact(self._meta)

    def checkpoint(self, directory: Path) -> None:
        """Makes a copy of this store, as it is now, out of links, in a directory that does not exist yet."""
        try:
            rocksdict.Checkpoint(self._db).create_checkpoint(str(directory))
        except Exception as error:
            raise _not_written(error, self._directory) from error

    def close(self) -> None:
        """Closes the files; the log is synced already. RocksDB lets go of its lock with the last snapshot."""
        try:
            self._db.close()
        except Exception as error:  # after a failed write; what was acknowledged is on disk
            _log.warning("the replica's store %s was not closed in good order: %s", self._directory, error)
        del self._log, self._points, self._tombstones, self._meta
        del self._log_handle, self._points_handle, self._tombstones_handle, self._meta_handle


def write_ahead_bytes(directory: Path, first: int = 0) -> int:
    """What the write-ahead logs of a store take, from the one of this number on."""
    size = 0
    for path in directory.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # an open store removes them by a thread of its own
            size += path.stat().st_size if int(path.stem) >= first else 0
    return size


def _table_bytes(family: Any) -> int:
    return int(family.property_int_value("rocksdb.live-sst-files-size") or 0)


def _record(value: bytes) -> PointRecord:
    return PointRecord(_VERSION.unpack_from(value)[0], value[_VERSION.size :])


def _get(family: Any, key: bytes) -> bytes | None:
    try:
        value: bytes | None = family.get(key)
    except Exception as error:
        raise _unreadable(error) from error
    return value


def _walk(source: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The items of a column family from a key on, as they are at the moment of this call."""
    return _items(source.iter(), first)


def _items(iterator: Any, first: bytes) -> Iterator[tuple[bytes, bytes]]:
    iterator.seek(first)
    while iterator.valid():
        yield iterator.key(), iterator.value()
        iterator.next()
    try:
        iterator.status()
    except Exception as error:
        raise _unreadable(error) from error


def _options(family: str, memory: StoreMemory | None, *, create: bool) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create)
    options.create_missing_column_families(create)
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_total_wal_size(8 * _WRITE_BUFFER_BYTES)
    options.set_atomic_flush(True)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    table = rocksdict.BlockBasedOptions()
    if family == "points":
        table.set_bloom_filter(10, False)
    if memory is not None:
        options.set_write_buffer_manager(memory.buffers)
        table.set_block_cache(memory.cache)
    options.set_block_based_table_factory(table)
    return options


# rocksdict raises one class for everything: RocksDB's words tell a full disk from a damaged file.


def _not_opened(error: Exception, directory: Path) -> VectorfleetError:
    words = str(error)
    if _is_full(words):
        return ResourceExhausted(f"the node's disk is full: {words}", reason="DISK_FULL")
    if "lock hold by current process" in words:
        return Unavailable(f"the replica's store is still in use: {words}")
    if _is_short(words):
        return Unavailable(f"the replica's store {directory} cannot be opened at present: {words}")
    if "Corruption" in words and str(directory) not in words:
        # Of its files, RocksDB leaves only the name of the write-ahead log out.
        logs = ", ".join(sorted(path.name for path in directory.glob("*.log")))
        words = f"{words} (in its write-ahead log {logs})"
    return DataLoss(f"the replica's store {directory} cannot be opened: {words}")


def _not_written(error: Exception, directory: Path) -> VectorfleetError:
    words = str(error)
    if _is_full(words):
        return ResourceExhausted(f"the node's disk is full: {words}", reason="DISK_FULL")
    if "Corruption" in words:
        return DataLoss(f"the replica's store {directory} is damaged: {words}")
    return Unavailable(f"the replica's store {directory} cannot be written: {words}")


def _unreadable(error: Exception) -> VectorfleetError:
    words = str(error)
    if _is_short(words):
        return Unavailable(f"the replica's store cannot be read at present: {words}")
    if "Corruption" in words or "IO error" in words:
        return DataLoss(f"the replica's store cannot be read: {words}")
    return InternalError(f"the replica's store cannot be read: {words}")


def _is_short(words: str) -> bool:
    return "Too many open files" in words or "Cannot allocate memory" in words


def _is_full(words: str) -> bool:
    return "No space left" in words or "NoSpace" in words or "Disk quota exceeded" in words
