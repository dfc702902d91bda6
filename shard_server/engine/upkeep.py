"""A replica's background work: sealing its buffer, merging its segments, encoding them with the current codebook.

`Upkeep.step` does at most one unit, without a clock or a thread of its own. Each unit builds new files beside the old and then
hands them to the state, where they take effect in one step; one that fails has changed nothing, and is tried again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shard_server.engine import compaction, files, segment
from shard_server.engine.index import Codebook
from shard_server.engine.state import ReplicaState
from vectorfleet.errors import DataLoss

ENCODE_ROWS_MIN: Final = 1024
"""A segment of fewer rows is searched exactly: visiting its lists would cost more than reading it."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """When buffers are sealed and how large segments grow."""

    seal_points: int = 16_384
    seal_bytes: int = 64 << 20
    seal_age_s: float = 5.0
    idle_s: float = 1.0
    """Writes have paused when none came for so long: left-over small segments are folded together then."""
    segment_bytes_max: int = 16 << 30


class Upkeep:
    """The background work of one replica. For one thread at a time."""

    def __init__(self, state: ReplicaState, settings: EngineSettings, directory: Path) -> None:
        """Does nothing by itself.

        Args:
            state: what it works on.
            settings: when to do what.
            directory: where the segments' directories stand.
        """
        self._state = state
        self._settings = settings
        self._directory = directory
        self._buffer_seen_s: float | None = None
        self._quiet_since: tuple[int, float] = (-1, 0.0)

    def step(self, now_s: float) -> bool:
        """Does at most one unit; returns whether there was something to do.

        Args:
            now_s: monotonic seconds.

        Raises:
            OSError, VectorfleetError: it failed; nothing has changed, and the next call tries again.
        """
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
        """Whether nothing is left to do, as long as no write comes."""
        with self._state.lock:
            empty = self._state.frozen is None and self._state.active.rows == 0
        return empty and not self._merge_due(idle=True) and self._encode_due() is None

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
        if rows == 0:
            self._buffer_seen_s = None
        elif self._buffer_seen_s is None:
            self._buffer_seen_s = now_s
        old = self._buffer_seen_s is not None and now_s - self._buffer_seen_s >= self._settings.seal_age_s
        return frozen or rows >= self._settings.seal_points or size >= self._settings.seal_bytes or old

    def _seal(self) -> None:
        resumed = self._state.frozen is not None
        view = self._state.freeze().view()
        if not resumed:
            self._buffer_seen_s = None
        rows = view.live.live_rows()
        built = None
        if len(rows):
            # While writes outrun sealing, nothing is encoded.
            hurry = self._state.active.rows >= self._settings.seal_points
            source = segment.Source(view.vectors, rows, view.ids.__getitem__, view.terms.of_rows(len(view.vectors)))
            built = self._write([source], None if hurry else self._codebook_for(len(rows)))
        self._state.install(built, sealed=rows)

    # ------------------------------------------------------------------ merging

    def _merge_due(self, *, idle: bool) -> tuple[int, ...]:
        sizes = [
            compaction.SegmentSize(part.segment.number, part.segment.rows, part.live.dead)
            for part in self._state.segments
        ]
        seal_points = self._settings.seal_points
        rows_max = max(seal_points, self._settings.segment_bytes_max // (4 * self._state.identity.dim))
        return compaction.segments_to_merge(sizes, idle=idle, rows_at_sealing=seal_points, rows_max=rows_max)

    def _merge(self, numbers: Sequence[int]) -> None:
        chosen = [part for part in self._state.segments if part.segment.number in numbers]
        codebook = self._codebook_for(sum(part.live.live for part in chosen))
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
                (part.segment.terms,),
            )
            for part in chosen
        ]
        built = None
        if any(len(source.rows) for source in sources):
            built = self._write(sources, codebook, [part.segment.index_path for part in chosen] if joinable else [])
        self._state.install(built, merged=list(zip(chosen, sources, strict=True)))
        for part in chosen:
            # Searches that still read it keep its mappings; the names can go.
            shutil.rmtree(part.segment.directory, ignore_errors=True)
        files.sync_directory(self._directory)

    # ------------------------------------------------------------------ encoding

    def _encode_due(self) -> segment.Segment | None:
        codebook = self._state.codebook
        if codebook is None:
            return None
        stale = [
            part.segment
            for part in self._state.segments
            if part.segment.codebook_version != codebook.version and part.segment.rows >= ENCODE_ROWS_MIN
        ]
        return max(stale, key=lambda one: one.rows, default=None)

    def _encode(self, stale: segment.Segment) -> None:
        codebook = self._state.codebook
        assert codebook is not None
        attached = None
        if stale.entry.codebook_version == codebook.version:
            with contextlib.suppress(DataLoss):
                attached = segment.attach_index(stale)
        encoded = attached or stale.with_index(segment.write_index(stale, codebook))
        self._state.exchange(encoded)
        if stale.entry.HasField("index") and stale.index_path != encoded.index_path:
            stale.index_path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ new segments

    def _codebook_for(self, rows: int) -> Codebook | None:
        """The codebook to encode a new segment of so many rows with; None where it is not worth it."""
        return None if rows < ENCODE_ROWS_MIN else self._state.codebook

    def _write(
        self, sources: Sequence[segment.Source], codebook: Codebook | None, joinable: Sequence[Path] = ()
    ) -> segment.Segment:
        identity, number = self._state.identity, self._state.manifest.next_segment
        entry = segment.write_segment(
            self._directory, number, sources, identity.dim, identity.metric, codebook, joinable
        )
        one = segment.open_segment(self._directory / str(number), entry, identity.dim, identity.metric)
        return segment.attach_index(one) if entry.HasField("index") else one
