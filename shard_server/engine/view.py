"""What a search sees: an immutable snapshot of a replica, replaced whole after every write and every change of segments.

Invariant: each live id stands in exactly one live row of exactly one segment or buffer of a view, and `points` holds
just the live ids; `codebooks` has that of every encoded segment. A reader takes the current view once and needs no lock
after that. A filter narrows a view to the rows that pass it; it is then searched like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shard_server.engine.bitmap import LiveRows
from shard_server.engine.buffer import BufferView
from shard_server.engine.index import Codebook
from shard_server.engine.parts import Part, Parts
from shard_server.engine.passing import Passing
from shard_server.engine.segment import Segment
from shard_server.engine.store import PointsSnapshot
from vectorfleet.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment with the rows that are alive in this view."""

    segment: Segment
    live: LiveRows
    passing: Passing | None = None
    """The rows that pass the view's filter; `live` holds no others."""

    @property
    def nbytes(self) -> int:
        """Heap bytes."""
        return self.live.nbytes + self.segment.passing.nbytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoded parts of one codebook that hold live rows."""

    codebook: Codebook
    parts: tuple[Part, ...]
    live: int
    """Live rows of them."""


@dataclass(frozen=True)
class View:
    """A replica at one applied seqno. What all its searches need is computed by the first of them."""

    applied_seqno: int
    segments: tuple[SegmentView, ...]
    buffers: tuple[BufferView, ...]
    """The buffers being sealed, then the one that takes writes."""
    points: PointsSnapshot
    codebooks: Mapping[int, Codebook]
    """By version: at least those that `segments` are encoded with."""

    narrowed: bool = False
    """Whether a filter has taken rows away."""

    @cached_property
    def live(self) -> int:
        """Live points."""
        return sum(part.live.live for part in self.parts.each)

    @cached_property
    def parts(self) -> Parts:
        """The segments with live rows, then the buffers with live rows."""
        parts, first = [], 0
        for piece in self.segments:
            held = piece.segment
            if piece.live.live:
                rows = held.vectors, piece.live, held.ids.many, held.prepared, held.lengths
                parts.append(Part(first, *rows, held.index, held.codebook_version, piece.passing))
            first += piece.live.rows
        for buffer in self.buffers:
            if buffer.live.live:
                parts.append(Part(first, buffer.vectors, buffer.live, buffer.ids_of, buffer.prepared_rows))
            first += buffer.live.rows
        return Parts(parts)

    @cached_property
    def encoded(self) -> tuple[Encoded, ...]:
        """Those of `parts` that are searched through their codes, by their codebooks."""
        by_version: dict[int, list[Part]] = {}
        for part in self.parts.each:
            if part.index is not None:
                by_version.setdefault(part.codebook_version, []).append(part)
        return tuple(
            Encoded(self.codebooks[version], tuple(parts), sum(part.live.live for part in parts))
            for version, parts in sorted(by_version.items())
        )

    @cached_property
    def bare(self) -> tuple[Part, ...]:
        """Those of `parts` that have no codes."""
        return tuple(part for part in self.parts.each if part.index is None)

    def filtered(self, wanted: types_pb2.Filter) -> View:
        """The same with only those rows alive that pass a filter."""
        key = wanted.SerializeToString(deterministic=True)
        segments = []
        for part in self.segments:
            passing = part.segment.passing.of(wanted, key)
            segments.append(SegmentView(part.segment, part.live.among(passing.bits), passing))
        buffers = [replace(buffer, live=buffer.live.among(buffer.passing(wanted))) for buffer in self.buffers]
        return replace(self, segments=tuple(segments), buffers=tuple(buffers), narrowed=True)

    def vectors_of(self, ids: Sequence[bytes], versions: Sequence[int]) -> list[NDArray[np.float32] | None]:
        """The raw vector (float32[dim]) of each id that this view's `points` knows under that version; else None."""
        found: list[NDArray[np.float32] | None] = [None] * len(ids)
        for position, version in enumerate(versions):
            for buffer in self.buffers:
                row = buffer.row_of_version(version)
                if row >= 0:
                    found[position] = buffer.vectors[row]
        for part in self.segments:
            missing = [position for position, vector in enumerate(found) if vector is None]
            if not missing:
                break
            rows = part.segment.ids.rows_of([ids[position] for position in missing], part.live)
            here = rows >= 0
            for position, vector in zip(np.asarray(missing)[here], part.segment.vectors[rows[here]], strict=True):
                found[position] = vector
        return found
