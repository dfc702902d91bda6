"""A replica: the one writer of its log, and the keeper of the view that searches read.

A write goes log (synced) → buffer, points, tombstones → new view → acknowledged; so an acknowledged write is on disk and is
seen by the next search. Background work (`maintain`) seals the buffer into a segment, encodes segments with the
collection's codebook, and merges segments; each builds new files beside the old, and takes effect in one RocksDB batch and
one swap of the view.

Two locks, always taken in this order: `_commit_lock` serialises writers through the log's fsync; `_state_lock` guards what
the view is made of, and is never held over an fsync of the log, an encoding or a search. Searches take neither.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import compaction, files, scoring, search, segment
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.buffer import Buffer
from shard_server.engine.index import Codebook
from shard_server.engine.search import SearchOptions
from shard_server.engine.store import Batch, PointRecord, Store
from shard_server.engine.view import SegmentView, View
from vectorfleet.errors import DataLoss, ResourceExhausted, Unavailable, VectorfleetError
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.limits import CALL_BYTES_MAX
from vectorfleet.v1 import types_pb2

FORMAT_VERSION: Final = 1
ENCODE_ROWS_MIN: Final = 1024
"""A segment of fewer rows is searched exactly: visiting its lists would cost more than reading it."""
_BUFFERS_BEHIND_MAX: Final = 8
"""The buffer may grow to this many times its sealing size; then writers wait for the sealing."""
_BACKPRESSURE_WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Which replica this is; fixed for life, and checked against the files at each opening."""

    collection_uid: str
    shard: int
    dim: int
    metric: int
    """`vectorfleet.v1.Metric` as a number."""
    kind: int
    """`vectorfleet.v1.IndexKind` as a number."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """When buffers are sealed and how large segments grow."""

    seal_points: int = 16_384
    seal_bytes: int = 64 << 20
    seal_age_s: float = 5.0
    idle_s: float = 1.0
    """Writes have paused when none came for so long: left-over small segments are folded together then."""
    segment_bytes_max: int = 16 << 30


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one mutation."""

    seqno: int
    """The last seqno that it took."""
    affected: int
    """Points inserted or replaced, or found and deleted."""


@dataclass(frozen=True, slots=True)
class ShardHits:
    """The hits of a batch, packed: those of query q follow those of query q - 1, best first; final scores."""

    counts: NDArray[np.uint32]
    scores: NDArray[np.float32]
    ids: list[str]
    payloads: list[bytes] | None
    vectors: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A point as it is kept; `vector` is little-endian float32[dim], or empty where it was not asked for."""

    id: str
    version: int
    payload: bytes
    vector: bytes


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """Sizes, for operators and for the controller."""

    points: int
    indexed_points: int
    buffered_points: int
    tombstones: int
    segments: int
    codebook_version: int
    applied_seqno: int
    disk_bytes: int
    index_bytes: int
    memory_bytes: int


class Replica:
    """One copy of one shard. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        identity: ReplicaIdentity,
        settings: EngineSettings,
        codebook: Codebook | None,
        store: Store,
    ) -> None:
        """Use `Replica.open`."""
        self.identity = identity
        self.settings = settings
        self._segments_directory = directory / "segments"
        self._store = store
        self._commit_lock = threading.Lock()
        self._state_lock = threading.Condition()
        self._codebook = codebook
        self._codebooks = {} if codebook is None else {codebook.version: codebook}
        self._segments: tuple[SegmentView, ...] = ()
        self._frozen: Buffer | None = None
        self._active = Buffer(identity.dim, identity.metric)
        self._manifest = storage_pb2.ReplicaManifest()
        self._applied = 0
        self._sealing_up_to = 0
        self._failed: VectorfleetError | None = None
        self._open_view: View | None = None
        self._buffer_seen_s: float | None = None
        self._quiet_since: tuple[int, float] = (-1, 0.0)
        self.term = 0

    # ------------------------------------------------------------------ opening

    @classmethod
    def open(
        cls,
        directory: Path,
        identity: ReplicaIdentity,
        settings: EngineSettings | None = None,
        codebook: Codebook | None = None,
    ) -> Replica:
        """Creates a replica, or recovers it: manifest, segments (checked and mapped), tombstones, then the log's tail.

        Args:
            directory: its own directory; made where it is missing.
            identity: what it must be.
            settings: defaults where absent.
            codebook: the collection's current one, where there is one; see `use_codebook`.

        Raises:
            DataLoss: files are damaged, missing, of an unknown format version, or of another replica.
        """
        directory.mkdir(parents=True, exist_ok=True)
        store = Store(directory / "store")
        replica = cls(directory, identity, settings or EngineSettings(), codebook, store)
        try:
            replica._recover(directory)
        except BaseException:
            store.close()
            raise
        return replica

    def _recover(self, directory: Path) -> None:
        manifest = self._store.manifest()
        if manifest is None:
            manifest = storage_pb2.ReplicaManifest(
                format_version=FORMAT_VERSION,
                collection_uid=self.identity.collection_uid,
                shard=self.identity.shard,
                dim=self.identity.dim,
                metric=self.identity.metric,
                next_segment=1,
            )
            batch = self._store.batch()
            batch.put_manifest(manifest)
            batch.write(sync=True)
        self._check(manifest, directory)
        self._manifest = manifest
        self._segments_directory.mkdir(exist_ok=True)
        self._remove_leftovers()
        opened = [
            segment.open_segment(
                self._segments_directory / str(entry.segment), entry, self.identity.dim, self.identity.metric
            )
            for entry in manifest.segments
        ]
        dead: dict[int, list[int]] = {}
        for number, row in self._store.tombstones():
            dead.setdefault(number, []).append(row)
        self._segments = tuple(
            SegmentView(
                self._attached(one), LiveRows.all_of(one.rows).without(np.asarray(dead.get(one.number, []), np.int64))
            )
            for one in opened
        )
        self.term = self._store.term()
        self._replay(manifest.sealed_seqno)
        self._swap_view()

    def _check(self, manifest: storage_pb2.ReplicaManifest, directory: Path) -> None:
        if manifest.format_version != FORMAT_VERSION:
            raise DataLoss(
                f"{directory} has format version {manifest.format_version}; this release reads version {FORMAT_VERSION}"
            )
        found = (manifest.collection_uid, manifest.shard, manifest.dim, manifest.metric)
        wanted = (self.identity.collection_uid, self.identity.shard, self.identity.dim, self.identity.metric)
        if found != wanted:
            raise DataLoss(f"{directory} holds (collection, shard, dim, metric) {found} where {wanted} is expected")

    def _remove_leftovers(self) -> None:
        """Removes what a crash left half-made, and what a crash kept from being removed."""
        kept = {str(entry.segment): entry for entry in self._manifest.segments}
        for path in self._segments_directory.iterdir():
            entry = kept.get(path.name)
            if entry is None:
                shutil.rmtree(path)
                continue
            for file in path.glob("index-*"):
                if file.name != entry.index.name:
                    file.unlink()

    def _attached(self, one: segment.Segment) -> segment.Segment:
        """With its index, where that is whole and its codebook is at hand; else without, to be encoded again."""
        if not one.entry.HasField("index") or one.entry.codebook_version not in self._codebooks:
            return one
        try:
            return segment.attach_index(one)
        except DataLoss:
            return one

    def _replay(self, sealed: int) -> None:
        applied = self._store.applied()
        self._applied = sealed
        checked = False
        for entry in self._store.log_after(sealed):
            if entry.first_seqno != self._applied + 1:
                raise DataLoss(
                    f"the log of shard {self.identity.shard} of {self.identity.collection_uid} lacks seqno {self._applied + 1}"
                )
            if self._applied >= applied and not checked:
                self._kill_superseded()
                checked = True
            if self._applied < applied:
                self._restore(entry)
            else:
                self._apply([entry])
        if not checked:
            self._kill_superseded()
        if self._applied < applied:
            raise DataLoss(
                f"the log of shard {self.identity.shard} ends at seqno {self._applied}, but {applied} was applied"
            )

    def _restore(self, entry: storage_pb2.LogEntry) -> None:
        """Puts the rows of an entry back into the buffer; its other effects are in the store already."""
        if entry.mutation.WhichOneof("kind") == "upsert":
            upsert = entry.mutation.upsert
            self._active.append([point_id.encode() for point_id in upsert.ids], self._matrix(upsert), entry.first_seqno)
        self._applied = entry.first_seqno + _length(entry.mutation) - 1

    def _kill_superseded(self) -> None:
        """Rows that a later, applied entry replaced or deleted are dead: the store knows each point's present version."""
        view = self._active.view()
        stale = [
            row for row in view.live.live_rows() if self._store.version_of(view.ids[row]) != int(view.versions[row])
        ]
        self._active.kill_rows(np.asarray(stale, np.int64))

    # ------------------------------------------------------------------ writing

    def commit(self, mutations: Sequence[storage_pb2.Mutation], term: int) -> list[Applied]:
        """Logs mutations with one fsync and applies them in order: a group commit.

        Args:
            mutations: valid ones: finite vectors of the right dimension, no id twice within one.
            term: the primary's term.

        Returns:
            One outcome for each mutation, in order.

        Raises:
            ResourceExhausted: DISK_FULL, or OVERLOADED where sealing is far behind. Nothing was written.
            DataLoss: the store failed; the replica takes no more writes.
        """
        with self._commit_lock:
            self._raise_if_failed()
            self._wait_for_room()
            entries, seqno = [], self._applied
            for mutation in mutations:
                entries.append(storage_pb2.LogEntry(term=term, first_seqno=seqno + 1, mutation=mutation))
                seqno += _length(mutation)
            try:
                self._store.append(entries, term_changed=term != self.term)
            except DataLoss as error:
                self._failed = error
                raise
            self.term = term
            with self._state_lock:
                try:
                    applied = self._apply(entries)
                except VectorfleetError as error:
                    # The log has the writes, memory may have half of them: only a restart, which replays, is sound.
                    self._failed = error
                    raise
                self._swap_view()
            return applied

    def _apply(self, entries: Sequence[storage_pb2.LogEntry]) -> list[Applied]:
        """Makes logged entries take effect. Under both locks, or before the replica is shared."""
        batch = self._store.batch()
        outcomes = []
        for entry in entries:
            if entry.mutation.WhichOneof("kind") == "upsert":
                affected = self._apply_upsert(batch, entry)
            else:
                affected = self._apply_delete(batch, entry)
            self._applied = entry.first_seqno + _length(entry.mutation) - 1
            outcomes.append(Applied(self._applied, affected))
        batch.put_applied(self._applied)
        batch.write(sync=False)
        return outcomes

    def _apply_upsert(self, batch: Batch, entry: storage_pb2.LogEntry) -> int:
        upsert = entry.mutation.upsert
        ids = [point_id.encode() for point_id in upsert.ids]
        self._kill(batch, [point_id for point_id in ids if point_id not in self._active])
        self._active.append(ids, self._matrix(upsert), entry.first_seqno)
        payloads = upsert.payloads or [b""] * len(ids)
        for version, (point_id, payload) in enumerate(zip(ids, payloads, strict=True), entry.first_seqno):
            batch.put_point(point_id, version, payload)
        return len(ids)

    def _apply_delete(self, batch: Batch, entry: storage_pb2.LogEntry) -> int:
        ids = [point_id.encode() for point_id in entry.mutation.delete.ids]
        elsewhere = self._active.kill(ids)
        affected = len(ids) - len(elsewhere) + self._kill(batch, elsewhere)
        for point_id in ids:
            batch.delete_point(point_id)
        return affected

    def _kill(self, batch: Batch, ids: list[bytes]) -> int:
        """Marks the rows of ids as dead in the frozen buffer and the segments; returns how many there were."""
        absent = ids if self._frozen is None else self._frozen.kill(ids)
        killed = len(ids) - len(absent)
        sought = [point_id for point_id in absent if self._store.exists(point_id)] if self._segments else []
        changed = []
        for part in self._segments:
            rows = part.segment.rows_of(sought, part.live)
            found = rows[rows >= 0]
            if len(found):
                batch.put_tombstones(part.segment.number, found.tolist())
                sought = [point_id for point_id, row in zip(sought, rows, strict=True) if row < 0]
                killed += len(found)
                part = SegmentView(part.segment, part.live.without(found))
            changed.append(part)
        self._segments = tuple(changed)
        return killed

    def _matrix(self, upsert: storage_pb2.UpsertBatch) -> NDArray[np.float32]:
        return np.frombuffer(upsert.vectors, np.dtype("<f4")).reshape(len(upsert.ids), self.identity.dim)

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise DataLoss(
                f"the replica takes no writes since its store failed: {self._failed.message}; restart the node"
            )

    def _wait_for_room(self) -> None:
        def has_room() -> bool:
            rows, size = self._active.rows, self._active.nbytes
            return (
                rows < _BUFFERS_BEHIND_MAX * self.settings.seal_points
                and size < _BUFFERS_BEHIND_MAX * self.settings.seal_bytes
            )

        with self._state_lock:
            if not self._state_lock.wait_for(has_room, _BACKPRESSURE_WAIT_S):
                raise ResourceExhausted(
                    f"shard {self.identity.shard} holds {self._active.rows} points that are not sealed yet"
                )

    def _swap_view(self) -> None:
        """Publishes the present state. Under the state lock, or before the replica is shared."""
        buffers = [buffer.view() for buffer in (self._frozen, self._active) if buffer is not None]
        self._open_view = View(self._applied, self._segments, tuple(buffers), self._store.points())

    # ------------------------------------------------------------------ reading

    @property
    def _view(self) -> View:
        view = self._open_view
        if view is None:
            raise Unavailable(f"the replica of shard {self.identity.shard} is closed")
        return view

    @property
    def applied_seqno(self) -> int:
        """The last write that searches see."""
        return self._view.applied_seqno

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        nprobe: int = 0,
        oversample: float = 0.0,
        exact: bool = False,
        with_payload: bool = False,
        with_vector: bool = False,
    ) -> ShardHits:
        """Finds each query's nearest points, as of one moment.

        Args:
            vectors: float32[nq, dim], valid.
            k: hits a query, at least 1.
            nprobe: lists to visit; 0: the codebook's default.
            oversample: candidates compared on raw vectors, as a multiple of k; 0: the default.
            exact: compare every point.
            with_payload: return payloads.
            with_vector: return vectors.
        """
        view = self._view
        options = SearchOptions(k, nprobe, oversample, exact)
        hits = search.search(view, vectors, options, self.identity.metric, self._codebooks.get)
        payloads = self._payloads(view, hits.ids) if with_payload else None
        return ShardHits(
            hits.counts,
            hits.scores,
            [point_id.decode() for point_id in hits.ids],
            payloads,
            hits.vectors if with_vector else None,
        )

    @staticmethod
    def _payloads(view: View, ids: Sequence[bytes]) -> list[bytes]:
        payloads, size = [], 0
        for point_id in ids:
            record = view.points.get(point_id)
            # A view's points and rows are of one moment, so a hit without a record is a broken invariant, not a race.
            assert record is not None
            payloads.append(record.payload)
            size += len(record.payload)
            if size > CALL_BYTES_MAX:
                raise ResourceExhausted("the payloads of the hits pass 64 MiB", reason="RESPONSE_TOO_LARGE")
        return payloads

    def fetch(self, ids: Sequence[str], with_vector: bool) -> list[StoredPoint]:
        """Returns the points that exist, in the order asked."""
        view = self._view
        keys = [point_id.encode() for point_id in ids]
        found = [(key, record) for key in keys if (record := view.points.get(key)) is not None]
        return self._stored(view, found, with_vector)

    def scan(self, after_id: str, limit: int, with_vector: bool) -> tuple[list[StoredPoint], bool]:
        """Returns up to `limit` points whose id is above `after_id`, bytewise; and whether none lies beyond."""
        view = self._view
        found: list[tuple[bytes, PointRecord]] = []
        for item in view.points.after(after_id.encode()):
            if len(found) == limit:
                return self._stored(view, found, with_vector), False
            found.append(item)
        return self._stored(view, found, with_vector), True

    def _stored(self, view: View, found: Sequence[tuple[bytes, PointRecord]], with_vector: bool) -> list[StoredPoint]:
        vectors = [b""] * len(found)
        if with_vector:
            for position, vector in enumerate(
                view.vectors_of([key for key, _ in found], [record.version for _, record in found])
            ):
                assert vector is not None, "a live point has a row"
                vectors[position] = vector.tobytes()
        return [
            StoredPoint(key.decode(), record.version, record.payload, vector)
            for (key, record), vector in zip(found, vectors, strict=True)
        ]

    def sample(self, limit: int, seed: int) -> NDArray[np.float32]:
        """A uniform sample of live vectors, without repetition: float32[n, dim], normalised under COSINE."""
        view = self._view
        parts = [(part.segment.vectors, part.live) for part in view.segments] + [
            (part.vectors, part.live) for part in view.buffers
        ]
        total = sum(live.live for _, live in parts)
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(limit, total), replace=False))
        pieces, first = [], 0
        for vectors, live in parts:
            mine = chosen[(chosen >= first) & (chosen < first + live.live)] - first
            pieces.append(vectors[live.live_rows()[mine]])
            first += live.live
        sample = np.concatenate(pieces) if pieces else np.empty((0, self.identity.dim), np.float32)
        return scoring.normalised(sample) if self.identity.metric == types_pb2.METRIC_COSINE else sample

    # ------------------------------------------------------------------ background work

    def use_codebook(self, codebook: Codebook) -> None:
        """Makes a codebook the current one: new segments are encoded with it, old ones again by `maintain`."""
        with self._state_lock:
            if self._codebook is None or codebook.version >= self._codebook.version:
                self._codebook = codebook
            self._codebooks = {**self._codebooks, codebook.version: codebook}

    def maintain(self, now_s: float) -> bool:
        """Does at most one unit of background work: seal, merge or encode. Call from one thread at a time.

        Args:
            now_s: monotonic seconds.

        Returns:
            Whether there was something to do.

        Raises:
            OSError, VectorfleetError: it failed; nothing has changed, and the next call tries again.
        """
        if self._failed is not None:
            return False
        idle = self._is_idle(now_s)
        if self._seal_due(now_s):
            self._seal()
            return True
        chosen = self._merge_due(idle=idle)
        if chosen:
            self._merge(chosen)
            return True
        stale = self._encode_due()
        if stale is not None:
            self._encode(stale)
            return True
        return False

    @property
    def settled(self) -> bool:
        """Whether nothing is left to seal, merge or encode, as long as no write comes."""
        with self._state_lock:
            empty = self._frozen is None and self._active.rows == 0
        return empty and not self._merge_due(idle=True) and self._encode_due() is None

    def _is_idle(self, now_s: float) -> bool:
        seqno, since_s = self._quiet_since
        if seqno != self._applied:
            self._quiet_since = (self._applied, now_s)
            return False
        return now_s - since_s >= self.settings.idle_s

    def _seal_due(self, now_s: float) -> bool:
        with self._state_lock:
            rows, size, frozen = self._active.rows, self._active.nbytes, self._frozen is not None
        if rows == 0:
            self._buffer_seen_s = None
        elif self._buffer_seen_s is None:
            self._buffer_seen_s = now_s
        old = self._buffer_seen_s is not None and now_s - self._buffer_seen_s >= self.settings.seal_age_s
        return frozen or rows >= self.settings.seal_points or size >= self.settings.seal_bytes or old

    def _seal(self) -> None:
        with self._state_lock:
            if self._frozen is None:
                self._frozen, self._active = self._active, Buffer(self.identity.dim, self.identity.metric)
                self._sealing_up_to = self._applied
                self._buffer_seen_s = None
                self._swap_view()
                self._state_lock.notify_all()
            frozen, sealed_seqno = self._frozen, self._sealing_up_to
            view = frozen.view()
        if view.live.live == 0:
            self._install(None, [], sealed_seqno, frozen_rows=np.empty(0, np.int64))
            return
        source = segment.Source(view.vectors, view.live.live_rows(), view.ids.__getitem__)
        entry = self._write(
            [source], self._codebook_for(len(source.rows), hurry=self._active.rows >= self.settings.seal_points)
        )
        self._install(entry, [], sealed_seqno, frozen_rows=source.rows)

    def _merge_due(self, *, idle: bool) -> tuple[int, ...]:
        sizes = [
            compaction.SegmentSize(part.segment.number, part.segment.rows, part.live.dead) for part in self._segments
        ]
        rows_max = max(self.settings.seal_points, self.settings.segment_bytes_max // (4 * self.identity.dim))
        return compaction.segments_to_merge(
            sizes, idle=idle, rows_at_sealing=self.settings.seal_points, rows_max=rows_max
        )

    def _merge(self, numbers: Sequence[int]) -> None:
        chosen = [part for part in self._segments if part.segment.number in numbers]
        codebook = self._codebook_for(sum(part.live.live for part in chosen), hurry=False)
        joinable = (
            codebook is not None
            and len(chosen) > 1
            and all(part.segment.codebook_version == codebook.version for part in chosen)
            and all(part.live.dead <= compaction.DEAD_SHARE_MAX / 2 * part.segment.rows for part in chosen)
        )
        # Joining encoded lists keeps row numbers, dead rows included; encoding again drops the dead ones.
        sources = [
            segment.Source(
                part.segment.vectors,
                np.arange(part.segment.rows) if joinable else part.live.live_rows(),
                part.segment.id_of,
            )
            for part in chosen
        ]
        entry = None
        if any(len(source.rows) for source in sources):
            entry = self._write(sources, codebook, [part.segment.index_path for part in chosen] if joinable else [])
        self._install(entry, list(zip(chosen, sources, strict=True)), self._manifest.sealed_seqno, frozen_rows=None)

    def _encode_due(self) -> segment.Segment | None:
        codebook = self._codebook
        if codebook is None:
            return None
        stale = [
            part.segment
            for part in self._segments
            if part.segment.codebook_version != codebook.version and part.segment.rows >= ENCODE_ROWS_MIN
        ]
        return max(stale, key=lambda one: one.rows, default=None)

    def _encode(self, stale: segment.Segment) -> None:
        codebook = self._codebook
        assert codebook is not None
        attached = None
        if stale.entry.codebook_version == codebook.version:
            with contextlib.suppress(DataLoss):
                attached = segment.attach_index(stale)
        encoded = attached or stale.with_index(segment.write_index(stale, codebook))
        with self._state_lock:
            manifest = self._next_manifest()
            for entry in manifest.segments:
                if entry.segment == encoded.number:
                    entry.CopyFrom(encoded.entry)
            batch = self._store.batch()
            batch.put_manifest(manifest)
            batch.write(sync=True)
            self._manifest = manifest
            self._segments = tuple(
                replace(part, segment=encoded) if part.segment.number == encoded.number else part
                for part in self._segments
            )
            self._forget_codebooks()
            self._swap_view()
        if stale.entry.HasField("index") and stale.index_path != encoded.index_path:
            stale.index_path.unlink(missing_ok=True)

    def _codebook_for(self, rows: int, *, hurry: bool) -> Codebook | None:
        """The codebook to encode a new segment with; None while writes outrun sealing, or where it is not worth it."""
        return None if hurry or rows < ENCODE_ROWS_MIN else self._codebook

    def _write(
        self, sources: Sequence[segment.Source], codebook: Codebook | None, joinable: Sequence[Path] = ()
    ) -> storage_pb2.SegmentEntry:
        number = self._manifest.next_segment
        return segment.write_segment(
            self._segments_directory, number, sources, self.identity.dim, self.identity.metric, codebook, joinable
        )

    def _install(
        self,
        entry: storage_pb2.SegmentEntry | None,
        merged: Sequence[tuple[SegmentView, segment.Source]],
        sealed_seqno: int,
        *,
        frozen_rows: NDArray[np.int64] | None,
    ) -> None:
        """Puts a new segment in the place of its sources, in one batch and one swap of the view.

        Rows that died while the segment was built are dead in it from the start: they are looked up now, under the lock
        that keeps further rows from dying.
        """
        built = None
        if entry is not None:
            one = segment.open_segment(
                self._segments_directory / str(entry.segment), entry, self.identity.dim, self.identity.metric
            )
            built = segment.attach_index(one) if entry.HasField("index") else one
        gone = {part.segment.number for part, _ in merged}
        with self._state_lock:
            kept = [part for part in self._segments if part.segment.number not in gone]
            batch = self._store.batch()
            manifest = self._next_manifest()
            manifest.sealed_seqno = sealed_seqno
            survivors = [one for one in manifest.segments if one.segment not in gone]
            del manifest.segments[:]
            manifest.segments.extend(survivors)
            for number in gone:
                batch.drop_tombstones(number)
            if built is not None:
                live = self._live_of_new(built.rows, [source for _, source in merged], gone, frozen_rows)
                batch.put_tombstones(built.number, np.flatnonzero(~live.mask()).tolist())
                manifest.segments.append(built.entry)
                manifest.next_segment = built.number + 1
                kept.append(SegmentView(built, live))
            batch.put_manifest(manifest)
            batch.write(sync=True)
            self._manifest = manifest
            self._segments = tuple(kept)
            if frozen_rows is not None:
                self._frozen = None
            self._forget_codebooks()
            self._swap_view()
            self._state_lock.notify_all()
        for part, _ in merged:
            # Searches that still read it keep its mappings; the names can go.
            shutil.rmtree(part.segment.directory, ignore_errors=True)
        if merged:
            files.sync_directory(self._segments_directory)

    def _live_of_new(
        self, rows: int, sources: Sequence[segment.Source], gone: set[int], frozen_rows: NDArray[np.int64] | None
    ) -> LiveRows:
        if frozen_rows is not None:
            assert self._frozen is not None
            alive = self._frozen.view().live.mask()[frozen_rows]
        else:
            present = [part.live for part in self._segments if part.segment.number in gone]
            alive = np.concatenate([live.mask()[source.rows] for live, source in zip(present, sources, strict=True)])
        return LiveRows.all_of(rows).without(np.flatnonzero(~alive))

    def _next_manifest(self) -> storage_pb2.ReplicaManifest:
        manifest = storage_pb2.ReplicaManifest()
        manifest.CopyFrom(self._manifest)
        return manifest

    def _forget_codebooks(self) -> None:
        used = {part.segment.codebook_version for part in self._segments}
        current = self._codebook
        self._codebooks = {
            version: one for version, one in self._codebooks.items() if version in used or one is current
        }

    # ------------------------------------------------------------------ the rest

    def stats(self) -> ReplicaStats:
        """Sizes, as of the present view."""
        view, codebook = self._view, self._codebook
        current = [
            part
            for part in view.segments
            if codebook is None
            or part.segment.codebook_version == codebook.version
            or part.segment.rows < ENCODE_ROWS_MIN
        ]
        buffers = [buffer for buffer in (self._frozen, self._active) if buffer is not None]
        return ReplicaStats(
            points=view.live,
            indexed_points=sum(part.live.live for part in current),
            buffered_points=sum(buffer.live.live for buffer in view.buffers),
            tombstones=sum(part.live.dead for part in view.segments),
            segments=len(view.segments),
            codebook_version=0 if codebook is None else codebook.version,
            applied_seqno=view.applied_seqno,
            disk_bytes=sum(part.segment.disk_bytes for part in view.segments),
            index_bytes=sum(part.segment.entry.index.bytes for part in view.segments),
            memory_bytes=sum(buffer.nbytes for buffer in buffers) + sum(part.live.nbytes for part in view.segments),
        )

    def close(self) -> None:
        """Closes the files. Every acknowledged write is on disk already; calls that come later fail."""
        with self._commit_lock, self._state_lock:
            if self._open_view is not None:
                self._failed = DataLoss("the replica is closed")
                self._open_view = None
                self._store.close()


def _length(mutation: storage_pb2.Mutation) -> int:
    kind = mutation.WhichOneof("kind")
    return len(mutation.upsert.ids) if kind == "upsert" else len(mutation.delete.ids)
