"""What a replica holds at this moment: its buffers, its segments with their live rows, its manifest, its codebooks.

Logged writes take effect here (`apply`), and background work hands its new files over here (`freeze`, `install`,
`exchange`); each such step ends in one RocksDB batch and one new `View`. A sealing may be under way
beside another change of segments. Which work there is, and who may write, is for others to say.

`lock` guards all of it and is notified when a buffer is let go. It is never held over an fsync of the log, an encoding or
a search. Methods take it themselves; a caller takes it to see or do several things at one moment.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import segment
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.buffer import Buffer, encoded
from shard_server.engine.index import Codebook
from shard_server.engine.store import Batch, PointRecord, Store
from shard_server.engine.view import SegmentView, View
from vectorfleet.errors import Unavailable
from vectorfleet.internal.v1 import storage_pb2


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
class Applied:
    """The outcome of one mutation."""

    seqno: int
    """The last seqno that it took."""
    affected: int
    """Points inserted or replaced, or found and deleted."""


class ReplicaState:
    """The present state of one replica. Thread-safe."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        store: Store,
        manifest: storage_pb2.ReplicaManifest,
        segments: Sequence[SegmentView],
        codebooks: Sequence[Codebook],
    ) -> None:
        """Holds what is sealed: the log's tail is still to be applied, and nothing is published before `publish`.

        Args:
            identity: what replica it is.
            store: its RocksDB.
            manifest: as stored.
            segments: those of the manifest, in its order.
            codebooks: those at hand, the current one last.
        """
        self.identity = identity
        self.store = store
        self.lock = threading.Condition()
        self.manifest = manifest
        self.segments = tuple(segments)
        self.frozen: Buffer | None = None
        """Being sealed; holds the writes up to `frozen_up_to`."""
        self.frozen_up_to = 0
        self.active = Buffer(identity.dim, identity.metric)
        self.applied = manifest.sealed_seqno
        self.codebook = codebooks[-1] if codebooks else None
        """The current one: new segments are encoded with it."""
        self.codebooks = {codebook.version: codebook for codebook in codebooks}
        """By version: the current one, and those of segments that are to be encoded again. Replaced, never changed."""
        self._next_segment = manifest.next_segment
        self.published = 0
        """The applied seqno of the last view."""
        self._view: View | None = None

    # ------------------------------------------------------------------ the view

    @property
    def view(self) -> View:
        """What searches see. Raises `Unavailable` before the first `publish` and after `withdraw`."""
        view = self._view
        if view is None:
            raise Unavailable(
                f"the replica of shard {self.identity.shard} is closed, or its store cannot be opened again yet"
            )
        return view

    def walk(self, point_id: bytes) -> tuple[View, Iterator[tuple[bytes, PointRecord]]]:
        """A view, and its points whose id is above `point_id`, in bytewise order. Raises as `view`.

        Both are of one moment, so that each point has its row: nothing is applied between, and what is applied is published.
        """
        with self.lock:
            if self.view.applied_seqno != self.applied:
                self.publish()
            return self.view, self.store.points_after(point_id)

    def publish(self) -> None:
        """Makes the present state the view."""
        with self.lock:
            buffers = [buffer.view() for buffer in (self.frozen, self.active) if buffer is not None]
            self._view = View(self.applied, self.segments, tuple(buffers), self.store.points(), self.codebooks)
            self.published = self.applied

    def withdraw(self) -> bool:
        """Lets go of the view, and so of the store; returns whether there was one."""
        with self.lock:
            view, self._view = self._view, None
            return view is not None

    # ------------------------------------------------------------------ writes

    def apply(self, entries: Sequence[storage_pb2.LogEntry]) -> list[Applied]:
        """Makes logged entries take effect, in order; `publish` makes them seen."""
        with self.lock:
            batch, seqno = self.store.batch(), self.applied
            outcomes = []
            for entry in entries:
                if entry.mutation.WhichOneof("kind") == "upsert":
                    affected = self._upsert(batch, entry)
                else:
                    affected = self._delete(batch, entry)
                seqno = last_seqno(entry)
                outcomes.append(Applied(seqno, affected))
            batch.put_applied(seqno)
            batch.write(sync=False)
            self.applied = seqno
            return outcomes

    def encode_buffer(self) -> None:
        """Gives the newest rows codes, where enough of them have none; `publish` makes them seen. For the one who applies.

        Searches would otherwise compare these rows one by one. The codes are made without the lock.
        """
        with self.lock:
            buffer, codebook = self.active, self.codebook
            view = buffer.view()
        codes = None if codebook is None else encoded(view, codebook)
        if codes is not None:
            with self.lock:
                buffer.codes = codes
                # It may have been let go meanwhile, with the segments of that version.
                self.codebooks = {**self.codebooks, codes.codebook.version: codes.codebook}

    def restore(self, entry: storage_pb2.LogEntry) -> None:
        """Puts the rows of an entry back into the buffer; its other effects are in the store already."""
        with self.lock:
            if entry.mutation.WhichOneof("kind") == "upsert":
                upsert = entry.mutation.upsert
                ids = [point_id.encode() for point_id in upsert.ids]
                self.active.append(ids, self._matrix(upsert), _payloads(upsert), entry.first_seqno)
            self.applied = last_seqno(entry)

    def kill_superseded(self) -> None:
        """Rows that a later, applied entry replaced or deleted are dead: the store knows each point's present version."""
        with self.lock:
            view = self.active.view()
            stale = [
                row for row in view.live.live_rows() if self.store.version_of(view.ids[row]) != int(view.versions[row])
            ]
            self.active.kill_rows(np.asarray(stale, np.int64))

    def _upsert(self, batch: Batch, entry: storage_pb2.LogEntry) -> int:
        upsert = entry.mutation.upsert
        ids = [point_id.encode() for point_id in upsert.ids]
        self._kill(batch, [point_id for point_id in ids if point_id not in self.active])
        payloads = _payloads(upsert)
        self.active.append(ids, self._matrix(upsert), payloads, entry.first_seqno)
        for version, (point_id, payload) in enumerate(zip(ids, payloads, strict=True), entry.first_seqno):
            batch.put_point(point_id, version, payload)
        return len(ids)

    def _delete(self, batch: Batch, entry: storage_pb2.LogEntry) -> int:
        ids = [point_id.encode() for point_id in entry.mutation.delete.ids]
        elsewhere = self.active.kill(ids)
        affected = len(ids) - len(elsewhere) + self._kill(batch, elsewhere)
        for point_id in ids:
            batch.delete_point(point_id)
        return affected

    def _kill(self, batch: Batch, ids: list[bytes]) -> int:
        """Marks the rows of ids as dead in the frozen buffer and the segments; returns how many there were."""
        absent = ids if self.frozen is None else self.frozen.kill(ids)
        killed = len(ids) - len(absent)
        sought = [point_id for point_id in absent if self.store.exists(point_id)] if self.segments else []
        changed = []
        for part in self.segments:
            rows = part.segment.ids.rows_of(sought, part.live)
            found = rows[rows >= 0]
            if len(found):
                batch.put_tombstones(part.segment.number, found.tolist())
                sought = [point_id for point_id, row in zip(sought, rows, strict=True) if row < 0]
                killed += len(found)
                part = SegmentView(part.segment, part.live.without(found))
            changed.append(part)
        self.segments = tuple(changed)
        return killed

    def _matrix(self, upsert: storage_pb2.UpsertBatch) -> NDArray[np.float32]:
        return np.frombuffer(upsert.vectors, np.dtype("<f4")).reshape(len(upsert.ids), self.identity.dim)

    # ------------------------------------------------------------------ changes of segments

    def use_codebook(self, codebook: Codebook) -> None:
        """Makes a codebook the current one, unless that is newer."""
        with self.lock:
            if self.codebook is None or codebook.version >= self.codebook.version:
                self.codebook = codebook
            self.codebooks = {**self.codebooks, codebook.version: codebook}

    def new_number(self) -> int:
        """The number of a segment to be built; nobody else gets it."""
        with self.lock:
            number = self._next_segment
            self._next_segment += 1
            return number

    def freeze(self) -> Buffer:
        """The buffer to seal, which takes no more rows: the one whose sealing failed before, or the present one."""
        with self.lock:
            if self.frozen is None:
                self.frozen, self.active = self.active, Buffer(self.identity.dim, self.identity.metric)
                self.frozen_up_to = self.applied
                self.publish()
                self.lock.notify_all()
            return self.frozen

    def install(
        self,
        built: segment.Segment | None,
        codebook: Codebook | None,
        *,
        sealed: NDArray[np.int64] | None = None,
        merged: Sequence[tuple[SegmentView, segment.Source]] = (),
    ) -> None:
        """Puts a new segment in the place of the rows that it was made of.

        Rows that died while the segment was built are dead in it from the start: they are looked up now, under the lock
        that keeps further rows from dying.

        Args:
            built: the new segment; None: no row was alive.
            codebook: what it is encoded with; None: it is not.
            sealed: int64[rows], the rows of the frozen buffer that it holds, in order; None: it is not of the buffer.
            merged: else, the segments and the rows of them that it holds, in order.
        """
        gone = {part.segment.number for part, _ in merged}
        with self.lock:
            kept = [part for part in self.segments if part.segment.number not in gone]
            batch = self.store.batch()
            manifest = self.next_manifest()
            if sealed is not None:
                manifest.sealed_seqno = self.frozen_up_to
            survivors = [entry for entry in manifest.segments if entry.segment not in gone]
            del manifest.segments[:]
            manifest.segments.extend(survivors)
            for number in gone:
                batch.drop_tombstones(number)
            if built is not None:
                live = self._live_of_new(built.rows, sealed, merged)
                batch.put_tombstones(built.number, np.flatnonzero(~live.mask()).tolist())
                manifest.segments.append(built.entry)
                manifest.next_segment = max(manifest.next_segment, built.number + 1)
                kept.append(SegmentView(built, live))
            batch.put_manifest(manifest)
            batch.write(sync=True)
            if sealed is not None:
                self.frozen = None
            self._take(manifest, kept, codebook)
            self.lock.notify_all()

    def exchange(self, encoded: segment.Segment, codebook: Codebook) -> None:
        """Puts a segment with another index, made with `codebook`, in the place of itself."""
        with self.lock:
            manifest = self.next_manifest()
            for entry in manifest.segments:
                if entry.segment == encoded.number:
                    entry.CopyFrom(encoded.entry)
            batch = self.store.batch()
            batch.put_manifest(manifest)
            batch.write(sync=True)
            self._take(
                manifest,
                [
                    replace(part, segment=encoded) if part.segment.number == encoded.number else part
                    for part in self.segments
                ],
                codebook,
            )

    def next_manifest(self) -> storage_pb2.ReplicaManifest:
        """A copy of the manifest, to be changed."""
        manifest = storage_pb2.ReplicaManifest()
        manifest.CopyFrom(self.manifest)
        return manifest

    def _live_of_new(
        self,
        rows: int,
        sealed: NDArray[np.int64] | None,
        merged: Sequence[tuple[SegmentView, segment.Source]],
    ) -> LiveRows:
        if sealed is not None:
            assert self.frozen is not None
            alive = self.frozen.view().live.mask()[sealed]
        else:
            present = {part.segment.number: part.live for part in self.segments}
            alive = np.concatenate([present[part.segment.number].mask()[source.rows] for part, source in merged])
        return LiveRows.all_of(rows).without(np.flatnonzero(~alive))

    def _take(
        self, manifest: storage_pb2.ReplicaManifest, segments: Sequence[SegmentView], codebook: Codebook | None
    ) -> None:
        self.manifest = manifest
        self.segments = tuple(segments)
        used = {part.segment.codebook_version for part in self.segments}
        buffers = [buffer for buffer in (self.frozen, self.active) if buffer is not None]
        used |= {buffer.codes.codebook.version for buffer in buffers if buffer.codes is not None}
        # The new segment's may have been let go meanwhile, when nothing was encoded with it.
        known = self.codebooks if codebook is None else {**self.codebooks, codebook.version: codebook}
        self.codebooks = {version: one for version, one in known.items() if version in used or one is self.codebook}
        self.publish()


def _payloads(upsert: storage_pb2.UpsertBatch) -> Sequence[bytes]:
    """One for each id, empty where there is none."""
    return upsert.payloads or [b""] * len(upsert.ids)


def last_seqno(entry: storage_pb2.LogEntry) -> int:
    """The seqno of an entry's last point."""
    return entry.first_seqno + points_in(entry.mutation) - 1


def points_in(mutation: storage_pb2.Mutation) -> int:
    """How many seqnos a mutation takes."""
    kind = mutation.WhichOneof("kind")
    return len(mutation.upsert.ids) if kind == "upsert" else len(mutation.delete.ids)
