"""A replica: the one writer of its log, and the door to what it holds.

A write goes log (synced) → buffer, points, tombstones → new view → acknowledged; so an acknowledged write is on disk and is
seen by the next search. What it holds is `state`'s, how it comes back from its files is `recovery`'s, and the background work
behind the writes is `upkeep`'s.

A store that has failed to write takes no more: the replica then refuses writes, answers searches from its last view, and
`seal` opens the store again once the disk has room, which recovers as a restart would.

Three locks, always taken in this order: `_improve_lock` keeps the store from being opened again beneath a merge;
`_commit_lock` serialises writers through the log's fsync; the state's own lock guards what the view is made of. Searches take
none.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import disk, recovery, scoring, search, snapshot
from shard_server.engine.acknowledged import Acknowledged
from shard_server.engine.answers import ReplicaStats, ShardHits, StoredPoint
from shard_server.engine.index import Codebook
from shard_server.engine.memory import EngineMemory
from shard_server.engine.search import SearchOptions
from shard_server.engine.sizes import sizes_of
from shard_server.engine.snapshot import Snapshot
from shard_server.engine.stages import Lap, untimed
from shard_server.engine.state import Applied, ReplicaIdentity, ReplicaState, points_in
from shard_server.engine.store import PointRecord
from shard_server.engine.upkeep import EngineSettings, Upkeep
from shard_server.engine.view import View
from vectorfleet.errors import InternalError, ResourceExhausted, Unavailable, VectorfleetError, error_for
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.limits import CALL_BYTES_MAX
from vectorfleet.v1 import types_pb2

_BUFFERS_BEHIND_MAX: Final = 8
"""The buffer may grow to this many times its sealing size; then writers wait for the sealing."""
_BACKPRESSURE_WAIT_S: Final = 20.0
_REOPEN_WAIT_S: Final = 5.0
"""A search waits so long for a store that is being opened again; opening waits so long for the readers of the old one."""
_REOPEN_PAUSE_S: Final = 0.02


class Replica:
    """One copy of one shard. Thread-safe."""

    def __init__(self, directory: Path, state: ReplicaState, settings: EngineSettings, memory: EngineMemory) -> None:
        """Use `Replica.open`."""
        self._memory = memory
        self.identity = state.identity
        self.settings = settings
        self._directory = directory
        self._improve_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._readable = threading.Event()
        """Cleared while there is no view because the store is being opened again."""
        self._failed: tuple[str, str] | None = None
        """Why the store takes no writes: (reason, message)."""
        self._closed = False
        self._acknowledged = Acknowledged(directory / recovery.ACKNOWLEDGED)
        self._use(state)

    def _use(self, state: ReplicaState) -> None:
        self._state, self.term = state, state.store.term()
        self._upkeep = Upkeep(state, self.settings, self._directory / "segments", self._memory.ledger)
        self._memory.write_down(state)
        self._readable.set()

    @classmethod
    def open(
        cls,
        directory: Path,
        identity: ReplicaIdentity,
        settings: EngineSettings | None = None,
        codebook: Codebook | None = None,
        older: Sequence[Codebook] = (),
        memory: EngineMemory | None = None,
    ) -> Replica:
        """Creates a replica, or recovers it from its files.

        Args:
            directory: its own directory; made where it is missing.
            identity: what it must be.
            settings: defaults where absent.
            codebook: the collection's current one, where there is one; see `use_codebook`.
            older: with which segments may be encoded still.
            memory: what it shares with the process's other replicas; None: nothing, and nothing is refused.

        Raises:
            DataLoss: files are damaged, missing, of an unknown format version, or of another replica.
            ResourceExhausted: DISK_FULL; opening takes some room.
            OSError: a file of ours cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        # Left by a crash: no backup is under way before the replica is open.
        shutil.rmtree(directory / snapshot.FOLDER, ignore_errors=True)
        memory = memory or EngineMemory()
        codebooks = [] if codebook is None else [*older, codebook]
        state = recovery.recover(directory, identity, codebooks, memory=memory.stores)
        return cls(directory, state, settings or EngineSettings(), memory)

    # ------------------------------------------------------------------ writing

    def commit(self, mutations: Sequence[storage_pb2.Mutation], term: int, lap: Lap = untimed) -> list[Applied]:
        """Logs mutations with one fsync and applies them in order: a group commit.

        Args:
            mutations: valid ones: finite vectors of the right dimension, no id twice within one.
            term: the primary's term.
            lap: called after each of `stages.COMMIT`.

        Returns:
            One outcome for each mutation, in order.

        Raises:
            ResourceExhausted: DISK_FULL, MEMORY_FULL, or OVERLOADED where sealing is far behind.
            Unavailable: the store cannot be written at present, or the replica is closed.
            DataLoss: the store is damaged.
        """
        with self._commit_lock:
            self._raise_if_failed()
            if any(mutation.WhichOneof("kind") == "upsert" for mutation in mutations):
                disk.require_free(self._directory, self.settings.min_free_bytes)  # deletes may pass: they make room
            self._wait_for_sealing()
            lap("room")
            state = self._state
            entries, seqno = [], state.applied
            for mutation in mutations:
                entries.append(storage_pb2.LogEntry(term=term, first_seqno=seqno + 1, mutation=mutation))
                seqno += points_in(mutation)
            with self._memory.growing(state, mutations):
                try:
                    state.store.append(entries, term_changed=term != self.term)
                    lap("sync")
                    self.term = term
                    applied = state.apply(entries)
                    state.encode_buffer()
                    state.publish()
                    lap("apply")
                except Exception as error:
                    # The log may have the writes, memory half of them: only opening again, which replays, is sound.
                    self._note(error)
                    raise
            self._acknowledged.note(seqno)
            return applied

    def _note(self, error: Exception) -> None:
        said = error if isinstance(error, VectorfleetError) else InternalError(repr(error))
        self._failed = said.reason, said.message

    def _raise_if_failed(self) -> None:
        if self._closed:
            raise Unavailable(f"the replica of shard {self.identity.shard} is closed")
        if self._failed is not None:
            reason, why = self._failed
            place = f"shard {self.identity.shard}"
            raise error_for(reason, f"{place} takes no writes until its store is opened again: {why}")

    def _wait_for_sealing(self) -> None:
        state, settings = self._state, self.settings

        def has_room() -> bool:
            sealings = max(state.active.rows / settings.seal_points, state.active.nbytes / settings.seal_bytes)
            return sealings < _BUFFERS_BEHIND_MAX

        with state.lock:
            if not state.lock.wait_for(has_room, _BACKPRESSURE_WAIT_S):
                raise ResourceExhausted(
                    f"shard {self.identity.shard} holds {state.active.rows} points yet to be sealed"
                )

    # ------------------------------------------------------------------ reading

    @property
    def _view(self) -> View:
        return self._readable_state().view

    def _readable_state(self) -> ReplicaState:
        if not self._readable.is_set():  # nearly always it is: without a lock
            self._readable.wait(_REOPEN_WAIT_S)
        return self._state

    @property
    def applied_seqno(self) -> int:
        """The last write that searches see. Never blocks."""
        return self._state.published

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
        check: Callable[[], None] = lambda: None,
        lap: Lap = untimed,
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
            check: called after steps of bounded length; raises to end the search.
            lap: called after each of `stages.SEARCH`.
        """
        view = self._view if wanted is None else self._view.filtered(wanted)
        lap("filter")
        options = SearchOptions(k, nprobe, oversample, exact)
        hits = search.search(
            view, vectors, options, self.identity.metric, with_vector=with_vector, check=check, lap=lap
        )
        payloads = self._payloads(view, hits.ids) if with_payload else None
        lap("payload")
        ids = list(map(bytes.decode, hits.ids))
        return ShardHits(hits.counts, hits.scores, ids, payloads, hits.vectors, view.live)

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
        view, points = self._readable_state().walk(after_id.encode())
        found: list[tuple[bytes, PointRecord]] = []
        for item in points:
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
        """Makes a codebook the current one: new segments are encoded with it, old ones again by `improve`."""
        with self._commit_lock:
            self._state.use_codebook(codebook)

    @property
    def codebooks_in_use(self) -> frozenset[int]:
        """The versions that segments are encoded with, as their files say."""
        entries = self._state.manifest.segments
        return frozenset(entry.codebook_version for entry in entries if entry.HasField("index"))

    def seal(self, now_s: float) -> bool:
        """Seals the buffer if that is due: bounded work that writers may wait for. Call from one thread at a time.

        After a failed write its work is to open the store again, once the disk takes bytes and `improve` is done.

        Args:
            now_s: monotonic seconds.

        Returns:
            Whether there was something to do.

        Raises:
            DataLoss: files are damaged; the message names one.
            OSError, VectorfleetError: it failed; nothing has changed, and the next call tries again.
        """
        if self._closed:
            return False
        if self._failed is not None:
            # Damage does not go away by itself. And a merge is not waited for here: other replicas want to be sealed.
            if self._failed[0] == "DATA_LOSS" or not self._improve_lock.acquire(blocking=False):
                return False
            try:
                self._reopen()
            finally:
                self._improve_lock.release()
            return True
        return self._noting(self._upkeep.seal, now_s)

    def improve(self, now_s: float) -> bool:
        """Verifies, merges or encodes a unit, which may take long; may run beside `seal`. Call from one thread at a time.

        Args, returns and raises as `seal`.
        """
        with self._improve_lock:
            if self._closed or self._failed is not None:
                return False
            return self._noting(self._upkeep.improve, now_s)

    def _noting(self, step: Callable[[float], bool], now_s: float) -> bool:
        try:
            worked = step(now_s)
        except VectorfleetError as error:
            self._note(error)
            raise
        if worked:
            self._memory.write_down(self._state)
        return worked

    def _reopen(self) -> None:
        recovery.require_room(self._directory)
        with self._commit_lock:
            if self._closed:
                return
            old = self._state
            self._readable.clear()
            try:
                self._upkeep.stop_verifying()
                if old.withdraw():
                    old.store.close()
                self._use(self._recovered(old))
            except VectorfleetError as error:
                self._note(error)
                raise
            finally:
                self._readable.set()
            self._failed = None

    def _recovered(self, old: ReplicaState) -> ReplicaState:
        current = [] if old.codebook is None else [old.codebook]
        codebooks = [one for one in old.codebooks.values() if one is not old.codebook] + current
        known = {part.segment.number: part.segment for part in old.segments}
        until_s = time.monotonic() + _REOPEN_WAIT_S
        while True:
            try:
                return recovery.recover(self._directory, self.identity, codebooks, known, self._memory.stores)
            except Unavailable:
                # Searches that were under way hold a snapshot, and with it the old store.
                if time.monotonic() > until_s:
                    raise
                time.sleep(_REOPEN_PAUSE_S)

    @property
    def trouble(self) -> str:
        """Why it takes no writes at present; "" where it does."""
        return "" if self._failed is None else self._failed[1]

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
        _ = self._view
        self._state.store.flush()  # before writers are held up, so that what follows is short
        with self._commit_lock:
            self._raise_if_failed()
            return snapshot.take(self._state, self._directory, codebook_version)

    def stats(self) -> ReplicaStats:
        """Sizes, as of the present view."""
        return sizes_of(self._view, self._state)

    def close(self) -> None:
        """Closes the files. Every acknowledged write is on disk already; calls that come later fail."""
        with self._commit_lock, self._state.lock:
            self._acknowledged.close()
            self._closed = True
            self._readable.set()
            self._upkeep.stop_verifying()
            if self._state.withdraw():
                self._state.store.close()
            self._memory.forget(self.identity)
