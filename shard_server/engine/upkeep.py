"""A replica's background work: sealing its buffer, verifying, merging and encoding its segments.

`Upkeep.seal` and `Upkeep.improve` do at most one unit, without a clock or a thread of their own. Each unit builds new files
beside the old and then hands them to the state, where they take effect in one step; one that fails has changed nothing, and
is tried again. A merge may take minutes; writers wait for no more than a sealing, since that may run beside it.

Merging and encoding ask the ledger of memory first, and wait where there is no room; a merge of many segments is made one of two
then. Sealing does not ask: it gives back more than it takes, and writers wait for it.

When writes pause, what they left behind in the store is given back to the disk.

What opening does not read, since it is most of the bytes, is verified here at a bounded rate: the raw vectors of the segments
that were there, as far as nobody has asked for them, and the points. Nothing is merged before that. A new segment is read back
whole before it takes the place of what it was made of.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shard_server.durable import sync_folder
from shard_server.engine import compaction, disk, segment
from shard_server.engine.ids import Ids
from shard_server.engine.index import Codebook
from shard_server.engine.memory import ENCODING, MERGING, WORK_BYTES
from shard_server.engine.state import ReplicaState
from vectorfleet.errors import DataLoss, ResourceExhausted
from vectorfleet.ledger import Ledger

ENCODE_ROWS_MIN: Final = 1024
"""A segment of fewer rows is searched exactly: visiting its lists would cost more than reading it."""
LIST_ROWS_MIN: Final = 32_768
"""While writes go on, a segment of fewer rows gets no lists: to read all its codes costs a search no more than to visit lists,
and to find each row's list costs as much as all else of a write together. In a pause it gets them."""
SPARE_BYTES_MAX: Final = 1 << 20
"""What a store at rest may hold for nothing; of what its points take, `DEAD_SHARE_MAX` if that is more."""
TIDY_PAUSE_S: Final = 5.0
"""Between two tries to tidy the store: a search that began before may keep what is to go. Twice as long after each that fails."""
TIDY_PAUSE_MAX_S: Final = 300.0

_VERIFY_BYTES_PER_STEP: Final = 64 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """When buffers are sealed, how large segments grow, and what is left free on the disk."""

    seal_points: int = 16_384
    seal_bytes: int = 64 << 20
    seal_age_s: float = 5.0
    idle_s: float = 1.0
    """Writes have paused when none came for so long: left-over small segments are folded together then."""
    segment_bytes_max: int = 16 << 30
    min_free_bytes: int = 1 << 30
    """Upserts are refused while the disk has less free. Sealing and the store may use all of it, merging and encoding half."""
    verify_bytes_per_s: int = 128 << 20
    """Raw vectors read after opening, to verify them."""


class Upkeep:
    """The background work of one replica. For two threads: one that seals and one that improves."""

    def __init__(self, state: ReplicaState, settings: EngineSettings, directory: Path, ledger: Ledger) -> None:
        """Does nothing by itself.

        Args:
            state: what it works on.
            settings: when to do what.
            directory: where the segments' directories stand.
            ledger: of the process's memory.
        """
        self._state = state
        self._settings = settings
        self._directory = directory
        self._ledger = ledger
        self._buffer_seen_s: float | None = None
        self._quiet_since: tuple[int, float] = (-1, 0.0)
        self._verifying: Iterator[int] | None = self._verification()
        self._verify_at_s = 0.0
        self._tidy_at_s = 0.0
        self._tidy_pause_s = TIDY_PAUSE_S
        self._tidied = -1
        """What was sealed when the store was last found tidy."""

    def seal(self, now_s: float) -> bool:
        """Seals the buffer if that is due; returns whether it was. `now_s` and errors as for `improve`."""
        if not self._seal_due(now_s):
            return False
        self._seal()
        return True

    def improve(self, now_s: float) -> bool:
        """Verifies some bytes, merges, encodes or tidies the store; returns whether there was something to do.

        Args:
            now_s: monotonic seconds.

        Raises:
            DataLoss: files are damaged; the message names one.
            OSError, VectorfleetError: it failed; nothing has changed, and the next call tries again.
        """
        idle = self._is_idle(now_s)
        # What is sealed late in a pause would stay by itself beside what was folded without it.
        folding = idle and self._state.applied == self._state.manifest.sealed_seqno
        if self._verifying is not None and now_s >= self._verify_at_s:
            self._verify(self._verifying, now_s)
            return True
        # In a pause lists come first: a merge joins those of its segments only where all have some.
        unlisted = self._listing_due(idle=True) if idle else None
        if unlisted is not None and self._encode_within_memory(unlisted):
            return True
        chosen = self._merge_due(idle=folding)
        if chosen and self._verifying is None and self._merge_within_memory(chosen, idle=idle):
            return True
        stale = self._encode_due(idle=False)
        if stale is not None and self._encode_within_memory(stale):
            return True
        return idle and self._tidy(now_s)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do, as long as no write comes."""
        with self._state.lock:
            empty = self._state.frozen is None and self._state.active.rows == 0
        return empty and not self._merge_due(idle=True) and self._encode_due(idle=True) is None

    def _is_idle(self, now_s: float) -> bool:
        seqno, since_s = self._quiet_since
        applied = self._state.applied
        if seqno != applied:
            self._quiet_since = (applied, now_s)
            return False
        return now_s - since_s >= self._settings.idle_s

    # ------------------------------------------------------------------ sealing

    def _seal_due(self, now_s: float) -> bool:
        with self._state.lock:
            rows, size, frozen = self._state.active.rows, self._state.active.nbytes, self._state.frozen is not None
            unsealed = self._state.applied > self._state.manifest.sealed_seqno  # deletes alone leave no row
        if not unsealed:
            self._buffer_seen_s = None
        elif self._buffer_seen_s is None:
            self._buffer_seen_s = now_s
        old = self._buffer_seen_s is not None and now_s - self._buffer_seen_s >= self._settings.seal_age_s
        paused = rows >= ENCODE_ROWS_MIN and self._is_idle(now_s)
        return frozen or rows >= self._settings.seal_points or size >= self._settings.seal_bytes or old or paused

    def _seal(self) -> None:
        resumed = self._state.frozen is not None
        view = self._state.freeze().view()
        if not resumed:
            self._buffer_seen_s = None
        rows = view.live.live_rows()
        built = codebook = None
        if len(rows):
            codebook = self._codebook_for(len(rows))
            flat = codebook is not None and codebook.codes_alone
            # While writes outrun sealing, nothing is encoded that costs more than to write it.
            if not flat and self._state.active.rows >= self._settings.seal_points:
                codebook = None
            codes = view.codes.index if view.codes is not None and view.codes.codebook is codebook else None
            terms = view.terms.of_rows(len(view.vectors))
            source = segment.Source(view.vectors, rows, Ids.of(view.ids), terms, codes)
            built = self._write([source], codebook, flat=flat)
        self._state.install(built, codebook, sealed=rows)

    # ------------------------------------------------------------------ verifying

    def _verify(self, pieces: Iterator[int], now_s: float) -> None:
        """Verifies some more bytes."""
        done = 0
        try:
            for size in pieces:
                done += size
                if done >= _VERIFY_BYTES_PER_STEP:
                    break
            else:
                self._verifying = None
        except Exception:
            self._verifying = (
                self._verification()
            )  # an iterator that has raised would pass for one that came to its end
            raise
        self._verify_at_s = now_s + done / self._settings.verify_bytes_per_s

    def _verification(self) -> Iterator[int]:
        """Reads all that opening did not, yielding the bytes read; raises `DataLoss` where it is damaged."""
        for part in self._state.segments:
            yield from part.segment.vectors.verifying()
        yield from self._verify_points()

    def _verify_points(self) -> Iterator[int]:
        """Reads every point's record. There is one for each live row, or the store has lost some of its tables."""
        view, points = self._state.walk(b"")
        count = 0
        for point_id, record in points:
            count += 1
            yield len(point_id) + len(record.payload)
        if count != view.live:
            raise DataLoss(
                f"the store {self._directory.parent / 'store'} knows {count} points where the segments and the log hold"
                f" {view.live}: it has lost a part"
            )

    def stop_verifying(self) -> None:
        """Lets go of the view that is being verified; what is left is verified by whoever opens the replica next."""
        self._verifying = None

    # ------------------------------------------------------------------ tidying

    def _tidy(self, now_s: float) -> bool:
        """Gives back what the store holds for nothing, if that is much; says whether any of it is gone."""
        with self._state.lock:
            sealed, applied = self._state.manifest.sealed_seqno, self._state.applied
        if sealed != applied or sealed == self._tidied or now_s < self._tidy_at_s:
            return False
        store, points = self._state.store, self._state.view.live
        size, stale = store.points_bytes(points)
        log = store.log_bytes
        log_is_large = log > SPARE_BYTES_MAX
        points_are_stale = stale > max(SPARE_BYTES_MAX, compaction.DEAD_SHARE_MAX * size)
        if not log_is_large and not points_are_stale:
            self._tidied = sealed
            return False
        self._tidy_at_s = now_s + self._tidy_pause_s
        self._tidy_pause_s = min(2 * self._tidy_pause_s, TIDY_PAUSE_MAX_S)  # unless it comes to its end
        if log_is_large:
            self._require_room(0)  # what is sealed goes as a whole: hardly anything is written again
            store.shrink_log()
        if points_are_stale:
            self._require_room(size)
            store.shrink_points()
        self._tidy_pause_s = TIDY_PAUSE_S
        return store.log_bytes < log or store.points_bytes(points)[1] < stale

    # ------------------------------------------------------------------ merging

    def _merge_due(self, *, idle: bool) -> tuple[int, ...]:
        sizes = [
            compaction.SegmentSize(part.segment.number, part.segment.rows, part.live.dead)
            for part in self._state.segments
        ]
        seal_points = self._settings.seal_points
        rows_max = max(seal_points, self._settings.segment_bytes_max // (4 * self._state.identity.dim))
        return compaction.segments_to_merge(sizes, idle=idle, rows_at_sealing=seal_points, rows_max=rows_max)

    def _merge_within_memory(self, numbers: Sequence[int], *, idle: bool) -> bool:
        """Merges all of these segments, else the two smallest of them, else none; returns whether it did."""
        segments = {part.segment.number: part.segment for part in self._state.segments}
        by_size = sorted(numbers, key=lambda number: segments[number].rows)
        for fewer in dict.fromkeys((tuple(numbers), tuple(by_size[:2]))):
            # The new index, and beside it the largest of those that are joined.
            sizes = [self._index_bytes(segments[number].rows) for number in fewer]
            with self._room(MERGING, sum(sizes) + max(sizes)) as granted:
                if granted:
                    self._merge(fewer, idle=idle)
                    return True
        return False

    @contextlib.contextmanager
    def _room(self, kind: str, size: int) -> Iterator[bool]:
        """Reserves memory for background work; says whether there was room. What is refused waits, and is no failure."""
        try:
            self._ledger.reserve(kind, size + WORK_BYTES)
        except ResourceExhausted as error:
            _log.debug("%s waits: %s", self._directory, error.message)
            yield False
            return
        try:
            yield True
        finally:
            self._ledger.release(kind, size + WORK_BYTES)

    def _index_bytes(self, rows: int) -> int:
        codebook = self._codebook_for(rows)
        return 0 if codebook is None else rows * (codebook.m + 8)

    def _merge(self, numbers: Sequence[int], *, idle: bool) -> None:
        chosen = [part for part in self._state.segments if part.segment.number in numbers]
        rows = sum(part.live.live for part in chosen)
        codebook = self._codebook_for(rows)
        joinable = (
            codebook is not None
            and len(chosen) > 1
            and all(part.segment.codebook_version == codebook.version and part.segment.has_lists for part in chosen)
            and all(part.live.dead <= compaction.DEAD_SHARE_MAX / 2 * part.segment.rows for part in chosen)
        )
        # Joining encoded lists keeps row numbers, dead rows included; encoding again drops the dead ones.
        sources = [
            segment.Source(
                part.segment.vectors,
                np.arange(part.segment.rows) if joinable else part.live.live_rows(),
                part.segment.ids,
                (part.segment.terms,),
            )
            for part in chosen
        ]
        built = None
        if any(len(source.rows) for source in sources):
            self._require_room(sum(part.segment.disk_bytes for part in chosen))
            paths = [part.segment.index_path for part in chosen] if joinable else []
            flat = codebook is not None and codebook.codes_alone and rows < LIST_ROWS_MIN and not (idle or joinable)
            built = self._write(sources, codebook, paths, flat=flat)
        self._state.install(built, codebook, merged=list(zip(chosen, sources, strict=True)))
        for part in chosen:
            # Searches that still read it keep its mappings; the names can go.
            shutil.rmtree(part.segment.directory, ignore_errors=True)
        sync_folder(self._directory)

    # ------------------------------------------------------------------ encoding

    def _encode_due(self, *, idle: bool) -> segment.Segment | None:
        """The segment to be encoded next: the largest that has no codes under the current codebook, or wants lists."""
        codebook = self._state.codebook
        if codebook is None:
            return None
        stale = [
            part.segment
            for part in self._state.segments
            if part.segment.codebook_version != codebook.version and part.segment.rows >= ENCODE_ROWS_MIN
        ]
        return max(stale, key=lambda one: one.rows, default=self._listing_due(idle=idle))

    def _listing_due(self, *, idle: bool) -> segment.Segment | None:
        codebook = self._state.codebook
        if codebook is None or codebook.nlist == 1:
            return None
        unlisted = [
            part.segment
            for part in self._state.segments
            if part.segment.codebook_version == codebook.version
            and not part.segment.has_lists
            and (idle or part.segment.rows >= LIST_ROWS_MIN)
        ]
        return max(unlisted, key=lambda one: one.rows, default=None)

    def _encode_within_memory(self, stale: segment.Segment) -> bool:
        with self._room(ENCODING, self._index_bytes(stale.rows)) as granted:
            if granted:
                self._encode(stale)
            return granted

    def _encode(self, stale: segment.Segment) -> None:
        codebook = self._state.codebook
        assert codebook is not None
        encoded = self._attached(stale, codebook)
        if encoded is None:
            self._require_room(stale.rows * (codebook.m + 8))
            encoded = stale.with_index(segment.write_index(stale, codebook))
        self._state.exchange(encoded, codebook)
        if stale.entry.HasField("index") and stale.index_path != encoded.index_path:
            stale.index_path.unlink(missing_ok=True)

    @staticmethod
    def _attached(stale: segment.Segment, codebook: Codebook) -> segment.Segment | None:
        """With the index that it has on disk, where that is of this codebook and whole."""
        if stale.entry.codebook_version != codebook.version or stale.index is not None:
            return None
        try:
            return segment.attach_index(stale)
        except DataLoss as error:
            _log.warning("%s; the vectors are whole, so they are encoded again", error.message)
            return None

    # ------------------------------------------------------------------ new segments

    def _require_room(self, size: int) -> None:
        """What only makes searches faster leaves half of the reserve to the writes that are under way."""
        free, floor = disk.free_bytes(self._directory), self._settings.min_free_bytes // 2
        if free - size < floor:
            raise OSError(
                errno.ENOSPC, f"{size} more bytes would leave less than {floor} of {free} free", str(self._directory)
            )

    def _codebook_for(self, rows: int) -> Codebook | None:
        """The codebook to encode a new segment of so many rows with; None where it is not worth it."""
        return None if rows < ENCODE_ROWS_MIN else self._state.codebook

    def _write(
        self,
        sources: Sequence[segment.Source],
        codebook: Codebook | None,
        joinable: Sequence[Path] = (),
        *,
        flat: bool = False,
    ) -> segment.Segment:
        identity, number = self._state.identity, self._state.new_number()
        entry = segment.write_segment(
            self._directory, number, sources, identity.dim, identity.metric, codebook, joinable, flat=flat
        )
        place = self._directory / str(number)
        try:
            one = segment.open_segment(place, entry, identity.dim, identity.metric)
            for _ in one.vectors.verifying():
                pass
            return segment.attach_index(one) if entry.HasField("index") else one
        except BaseException:
            # Nobody knows it, and the next attempt writes another.
            shutil.rmtree(place, ignore_errors=True)
            raise
