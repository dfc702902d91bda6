"""What a search sees: an immutable snapshot of a replica, replaced whole after every write and every change of segments.

Invariant: each live id stands in exactly one live row of exactly one segment or buffer of a view, and `points` holds
just the live ids; `codebooks` has that of every code. A reader takes the current view once and needs no lock
after that. A filter narrows a view to the rows that pass it; it is then searched like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    flat: tuple[Part, ...]
    """Those whose codes are all read."""
    listed: tuple[Part, ...]
    """Those of which a query visits some lists."""
    live: int
    """Live rows of `listed`."""

    @classmethod
    def of(cls, codebook: Codebook, parts: Sequence[Part]) -> Encoded:
        """Tells apart those without lists."""
        flat = tuple(part for part in parts if part.index is not None and part.index.is_flat)
        listed = tuple(part for part in parts if part not in flat)
        return cls(codebook, flat + listed, flat, listed, sum(part.live.live for part in listed))


@dataclass(frozen=True)
class View:
    """A replica at one applied seqno. What all its searches need is computed by the first of them."""

    applied_seqno: int
    segments: tuple[SegmentView, ...]
    buffers: tuple[BufferView, ...]
    """The buffers being sealed, then the one that takes writes."""
    points: PointsSnapshot
    codebooks: Mapping[int, Codebook]
    """By version: at least those that `segments` and `buffers` are encoded with."""

    narrowed: bool = False
    """Whether a filter has taken rows away."""

    @cached_property
    def live(self) -> int:
        """Live points."""
        return sum(part.live.live for part in self.parts.each)

    @cached_property
    def parts(self) -> Parts:
        """The segments, then the buffers, of these the rows with codes before those without; as far as any live."""
        parts: list[Part] = []
        first = 0
        for piece in self.segments:
            held = piece.segment
            if piece.live.live:
                rows = held.vectors, piece.live, held.ids.many, held.prepared, held.vectors, held.lengths
                parts.append(Part(first, *rows, held.index, held.codebook_version, piece.passing))
            first += piece.live.rows
        for buffer in self.buffers:
            parts += _pieces(buffer, first)
            first += buffer.live.rows
        return Parts(parts)

    @cached_property
    def coded(self) -> int:
        """Live points with codes."""
        return sum(part.live.live for part in self.parts.each if part.index is not None)

    @cached_property
    def encoded(self) -> tuple[Encoded, ...]:
        """Those of `parts` that are searched through their codes, by their codebooks."""
        by_version: dict[int, list[Part]] = {}
        for part in self.parts.each:
            if part.index is not None:
                by_version.setdefault(part.codebook_version, []).append(part)
        return tuple(Encoded.of(self.codebooks[version], parts) for version, parts in sorted(by_version.items()))

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


def _pieces(buffer: BufferView, first: int) -> Iterator[Part]:
    """The rows of a buffer that have codes, and those that have none, as far as any live; its first is `first` in the view."""
    codes = buffer.codes
    coded = 0 if codes is None else codes.index.rows
    if codes is not None and (live := buffer.live.between(0, coded)).live:
        vectors, prepared = buffer.vectors[:coded], buffer.prepared[:coded]
        rows = first, vectors, live, buffer.ids_of, prepared.__getitem__, prepared, None
        yield Part(*rows, codes.index, codes.codebook.version)
    if (live := buffer.live.between(coded, buffer.live.rows)).live:
        vectors, prepared = buffer.vectors[coded:], buffer.prepared[coded:]
        yield Part(
            first + coded, vectors, live, lambda rows: buffer.ids_of(rows + coded), prepared.__getitem__, prepared
        )
