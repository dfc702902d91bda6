"""A replica: the one writer of its log, and the door to what it holds.

A write goes log (synced) → buffer, points, tombstones → new view → acknowledged; so an acknowledged write is on disk and is
seen by the next search. What it holds is `state`'s, how it comes back from its files is `recovery`'s, and the background work
behind the writes is `upkeep`'s.

Two locks, always taken in this order: `_commit_lock` serialises writers through the log's fsync; the state's own lock guards
what the view is made of. Searches take neither.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import recovery, scoring, search, snapshot
from shard_server.engine.index import Codebook
from shard_server.engine.search import SearchOptions
from shard_server.engine.snapshot import Snapshot
from shard_server.engine.state import Applied, ReplicaIdentity, ReplicaState, points_in
from shard_server.engine.store import PointRecord, Store
from shard_server.engine.upkeep import ENCODE_ROWS_MIN, EngineSettings, Upkeep
from shard_server.engine.view import View
from vectorfleet.errors import DataLoss, ResourceExhausted, VectorfleetError
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.limits import CALL_BYTES_MAX
from vectorfleet.v1 import types_pb2

_BUFFERS_BEHIND_MAX: Final = 8
"""The buffer may grow to this many times its sealing size; then writers wait for the sealing."""
_BACKPRESSURE_WAIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class ShardHits:
    """The hits of a batch, packed: those of query q follow those of query q - 1, best first; final scores."""

    counts: NDArray[np.uint32]
    scores: NDArray[np.float32]
    ids: list[str]
    payloads: list[bytes] | None
    vectors: NDArray[np.float32] | None
    matching: int
    """Live points that could have been found."""


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

    def __init__(self, directory: Path, state: ReplicaState, upkeep: Upkeep, settings: EngineSettings) -> None:
        """Use `Replica.open`."""
        self.identity = state.identity
        self.settings = settings
        self._directory = directory
        self._state = state
        self._store = state.store
        self._upkeep = upkeep
        self._commit_lock = threading.Lock()
        self._failed: VectorfleetError | None = None
        self.term = state.store.term()

    @classmethod
    def open(
        cls,
        directory: Path,
        identity: ReplicaIdentity,
        settings: EngineSettings | None = None,
        codebook: Codebook | None = None,
    ) -> Replica:
        """Creates a replica, or recovers it from its files.

        Args:
            directory: its own directory; made where it is missing.
            identity: what it must be.
            settings: defaults where absent.
            codebook: the collection's current one, where there is one; see `use_codebook`.

        Raises:
            DataLoss: files are damaged, missing, of an unknown format version, or of another replica.
        """
        settings = settings or EngineSettings()
        directory.mkdir(parents=True, exist_ok=True)
        store = Store(directory / "store")
        try:
            state = recovery.recover(directory, identity, store, [] if codebook is None else [codebook])
            return cls(directory, state, Upkeep(state, settings, directory / "segments"), settings)
        except BaseException:
            store.close()
            raise

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
            entries, seqno = [], self._state.applied
            for mutation in mutations:
                entries.append(storage_pb2.LogEntry(term=term, first_seqno=seqno + 1, mutation=mutation))
                seqno += points_in(mutation)
            try:
                self._store.append(entries, term_changed=term != self.term)
            except DataLoss as error:
                self._failed = error
                raise
            self.term = term
            with self._state.lock:
                try:
                    applied = self._state.apply(entries)
                except VectorfleetError as error:
                    # The log has the writes, memory may have half of them: only a restart, which replays, is sound.
                    self._failed = error
                    raise
                self._state.publish()
            return applied

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise DataLoss(
                f"the replica takes no writes since its store failed: {self._failed.message}; restart the node"
            )

    def _wait_for_room(self) -> None:
        state, settings = self._state, self.settings

        def has_room() -> bool:
            return (
                state.active.rows < _BUFFERS_BEHIND_MAX * settings.seal_points
                and state.active.nbytes < _BUFFERS_BEHIND_MAX * settings.seal_bytes
            )

        with state.lock:
            if not state.lock.wait_for(has_room, _BACKPRESSURE_WAIT_S):
                raise ResourceExhausted(
                    f"shard {self.identity.shard} holds {state.active.rows} points that are not sealed yet"
                )

    # ------------------------------------------------------------------ reading

    @property
    def applied_seqno(self) -> int:
        """The last write that searches see."""
        return self._state.view.applied_seqno

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
        wanted: types_pb2.Filter | None = None,
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
            wanted: a valid filter: only points that pass it are found.
        """
        view = self._state.view if wanted is None else self._state.view.filtered(wanted)
        options = SearchOptions(k, nprobe, oversample, exact)
        hits = search.search(view, vectors, options, self.identity.metric)
        payloads = self._payloads(view, hits.ids) if with_payload else None
        return ShardHits(
            hits.counts,
            hits.scores,
            [point_id.decode() for point_id in hits.ids],
            payloads,
            hits.vectors if with_vector else None,
            view.live,
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
        view = self._state.view
        keys = [point_id.encode() for point_id in ids]
        found = [(key, record) for key in keys if (record := view.points.get(key)) is not None]
        return self._stored(view, found, with_vector)

    def scan(self, after_id: str, limit: int, with_vector: bool) -> tuple[list[StoredPoint], bool]:
        """Returns up to `limit` points whose id is above `after_id`, bytewise; and whether none lies beyond."""
        view = self._state.view
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
        view = self._state.view
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
        self._state.use_codebook(codebook)

    def maintain(self, now_s: float) -> bool:
        """Does at most one unit of background work: seal, merge or encode. Call from one thread at a time.

        Args:
            now_s: monotonic seconds.

        Returns:
            Whether there was something to do.

        Raises:
            OSError, VectorfleetError: it failed; nothing has changed, and the next call tries again.
        """
        return self._failed is None and self._upkeep.step(now_s)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to seal, merge or encode, as long as no write comes."""
        return self._upkeep.settled

    # ------------------------------------------------------------------ the rest

    def snapshot(self, codebook_version: int) -> Snapshot:
        """Links this replica's files as they are at this moment; whoever asked for it removes it.

        Args:
            codebook_version: codes under another codebook are left out.

        Raises:
            DataLoss: the store has failed.
            ResourceExhausted: DISK_FULL.
            Unavailable: the replica is closed.
        """
        _ = self._state.view
        self._store.flush()  # before writers are held up, so that what follows is short
        with self._commit_lock:
            self._raise_if_failed()
            return snapshot.take(self._state, self._directory, codebook_version)

    def stats(self) -> ReplicaStats:
        """Sizes, as of the present view."""
        view, codebook = self._state.view, self._state.codebook
        current = [
            part
            for part in view.segments
            if codebook is None
            or part.segment.codebook_version == codebook.version
            or part.segment.rows < ENCODE_ROWS_MIN
        ]
        buffers = [buffer for buffer in (self._state.frozen, self._state.active) if buffer is not None]
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
            memory_bytes=sum(buffer.nbytes for buffer in buffers) + sum(part.nbytes for part in view.segments),
        )

    def close(self) -> None:
        """Closes the files. Every acknowledged write is on disk already; calls that come later fail."""
        with self._commit_lock, self._state.lock:
            if self._state.withdraw():
                self._failed = DataLoss("the replica is closed")
                self._store.close()
