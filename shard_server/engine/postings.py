"""Where each value of the payloads stands: value → rows, of one segment or of a part of a buffer; immutable.

    regions    values uint64[2, n] sorted, offsets uint64[n + 1], rows uint32[offsets[n]]; one after the other
    columns    uint64[5, columns]: the column's key (two), its region, its first value there, the one after its last
    places     uint64[3, regions]: where a region begins, its values, its rows
    trailer    uint64[2]: columns, regions

A condition is then two binary searches and a slice of rows, whatever the number of rows and whatever else the payloads hold;
nothing is resident but what is read. Small columns share a region; a region is sorted and merged in memory, so its size,
or that of the largest column, bounds what building takes. Segments merge their postings without reading a payload again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import terms
from shard_server.engine.terms import Key, Kind

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]

DROPPED: Final = 0xFFFFFFFF
"""In a mapping of rows: this one is left out."""
BLOCK_ROWS: Final = 4096
_REGION_ROWS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one type at one path, ascending, and the rows that hold each."""

    high: U64
    low: U64
    _offsets: U64
    """uint64[values + 1], into `_rows`."""
    _rows: U32

    def position(self, key: Key, *, after: bool) -> int:
        """Where a key would stand: before the values that equal it, or after them."""
        high = np.uint64(key[0])
        first, last = int(self.high.searchsorted(high, "left")), int(self.high.searchsorted(high, "right"))
        return first + int(self.low[first:last].searchsorted(np.uint64(key[1]), "right" if after else "left"))

    def rows(self, first: int, last: int) -> U32:
        """The rows of the values from one position to before another."""
        return self._rows[int(self._offsets[first]) : int(self._offsets[last])] if first < last else self._rows[:0]

    def rows_of(self, keys: Sequence[Key]) -> list[U32]:
        """The rows of each of these values."""
        wanted = np.asarray([key[0] for key in keys], np.uint64)
        at, end = self.high.searchsorted(wanted, "left"), self.high.searchsorted(wanted, "right")
        found = [keys[position] for position in np.flatnonzero(at < end).tolist()]
        return [self.rows(self.position(key, after=False), self.position(key, after=True)) for key in found]


class Postings:
    """Finds columns; thread-safe."""

    def __init__(self, data: NDArray[np.uint8], rows: int) -> None:
        """Reads what `merged` wrote.

        Args:
            data: uint8[n], 8-byte aligned; may be mapped memory.
            rows: of the segment, or of the part of a buffer.
        """
        self.rows = rows
        self._data = data
        columns, regions = (int(number) for number in data[-16:].view(np.uint64))
        end = len(data) - 16
        self._places = data[end - 24 * regions : end].view(np.uint64).reshape(3, regions)
        end -= 24 * regions
        self._columns = data[end - 40 * columns : end].view(np.uint64).reshape(5, columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self._data.nbytes

    def column(self, path: str, kind: Kind) -> Column | None:
        """The values of one type at one path; None where there are none."""
        high, low = terms.column_key(path, kind)
        first = int(self._columns[0].searchsorted(np.uint64(high), "left"))
        while first < self._columns.shape[1] and int(self._columns[0, first]) == high:
            if int(self._columns[1, first]) == low:
                region, begin, end = (int(number) for number in self._columns[2:, first])
                return self._slice(region, begin, end)
            first += 1
        return None

    def _slice(self, region: int, begin: int, end: int) -> Column:
        place, values, rows = (int(number) for number in self._places[:, region])
        numbers = self._data[place : place + 8 * (3 * values + 1)].view(np.uint64)
        entries = self._data[place + numbers.nbytes : place + numbers.nbytes + 4 * rows].view(np.uint32)
        high, low, offsets = numbers[:values], numbers[values : 2 * values], numbers[2 * values :]
        return Column(high[begin:end], low[begin:end], offsets[begin : end + 1], entries)

    def keys(self) -> tuple[U64, U64, U64]:
        """Each column's key, and how many rows it has: uint64[columns], three times."""
        sizes = np.zeros(self._columns.shape[1], np.uint64)
        for region, begin, end in self._runs(0, len(sizes)):
            offsets = self._slice(region, 0, int(self._places[1, region]))._offsets
            sizes[begin:end] = offsets[self._columns[4, begin:end]] - offsets[self._columns[3, begin:end]]
        return self._columns[0], self._columns[1], sizes

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """The columns from `first` to before `last`, cut where the region changes: (region, from, to)."""
        regions = self._columns[2, first:last]
        cuts = [0, *(np.flatnonzero(np.diff(regions)) + 1).tolist(), len(regions)]
        for begin, end in itertools.pairwise(cuts):
            if begin < end:
                yield int(regions[begin]), first + begin, first + end

    def slices(self, first: int, last: int, ranks: U64, row_of: U32) -> Iterator[_Slices]:
        """The values of the columns from `first` to before `last`, whose ranks are `ranks`, with rows renamed."""
        for region, begin, end in self._runs(first, last):
            value, value_end = int(self._columns[3, begin]), int(self._columns[4, end - 1])
            column = self._slice(region, value, value_end)
            offsets = column._offsets
            lengths = (self._columns[4, begin:end] - self._columns[3, begin:end]).astype(np.int64)
            yield _Slices(
                np.repeat(ranks[begin - first : end - first], lengths),
                column.high,
                column.low,
                np.diff(offsets).astype(np.int64),
                row_of[column._rows[int(offsets[0]) : int(offsets[-1])]],
            )


@dataclass(frozen=True, slots=True)
class _Slices:
    """Values in any order, each with its column's rank and its rows, which follow one another."""

    ranks: U64
    high: U64
    low: U64
    counts: NDArray[np.int64]
    """At least 1 each."""
    rows: U32


def of_payloads(payloads: Sequence[bytes]) -> Postings:
    """Reads payloads, one a row (empty: none)."""
    columns: dict[tuple[str, type], int] = {}
    column_of: list[int] = []
    values: list[Any] = []
    counts = np.zeros(len(payloads), np.int64)
    for row, payload in enumerate(payloads):
        for path, value in terms.leaves(payload):
            column_of.append(columns.setdefault((path, type(value)), len(columns)))
            values.append(value)
        counts[row] = len(values)
    names = np.asarray([terms.column_key(path, terms.KIND_OF[kind]) for path, kind in columns], np.uint64).reshape(
        -1, 2
    )
    order = np.lexsort((names[:, 1], names[:, 0]))
    new = _changes(names[order, 0], names[order, 1])
    rank_of = np.empty(len(names), np.uint64)
    rank_of[order] = np.cumsum(new) - 1
    keys = terms.keys_of(values)
    one_each = _Slices(
        rank_of[np.asarray(column_of, np.int64)],
        keys[:, 0],
        keys[:, 1],
        np.ones(len(values), np.int64),
        np.repeat(np.arange(len(payloads), dtype=np.uint32), np.diff(counts, prepend=0)),
    )
    layout = _Layout()
    parts = [layout.region(one_each)] if values else []
    parts.append(layout.directory(*names[order[new]].T))
    return _in_memory(parts, len(payloads))


def joined(sources: Sequence[tuple[Postings, U32]], rows: int) -> Postings:
    """What `merged` writes, in memory."""
    return _in_memory(list(merged(sources)), rows)


class Blocks:
    """Postings of rows that come little by little.

    Blocks of like size are joined, so that n rows stand in about log2(n) blocks, and each is sorted about as often.
    """

    def __init__(self) -> None:
        self.postings: tuple[Postings, ...] = ()
        """Of rows that follow one another; replaced whole."""

    @property
    def rows(self) -> int:
        """Rows so far."""
        return sum(block.rows for block in self.postings)

    @property
    def nbytes(self) -> int:
        """Heap bytes."""
        return sum(block.nbytes for block in self.postings)

    def add(self, payloads: Sequence[bytes]) -> None:
        """Adds rows, best `BLOCK_ROWS` or fewer at once."""
        blocks = [*self.postings, of_payloads(payloads)]
        while len(blocks) > 1 and blocks[-2].rows < 2 * blocks[-1].rows:
            first, second = blocks[-2:]
            rows = np.arange(first.rows + second.rows, dtype=np.uint32)
            blocks[-2:] = [joined([(first, rows[: first.rows]), (second, rows[first.rows :])], len(rows))]
        self.postings = tuple(blocks)


def _in_memory(parts: Sequence[bytes], rows: int) -> Postings:
    return Postings(np.frombuffer(b"".join(parts), np.uint8), rows)


def merged(sources: Sequence[tuple[Postings, U32]]) -> Iterator[bytes]:
    """Joins postings, region by region, in the form that `Postings` reads.

    Args:
        sources: each with the new number of each of its rows, uint32[rows], `DROPPED` for those that go.
    """
    named = [source.keys() for source, _ in sources]
    high, low, sizes = (np.concatenate([np.empty(0, np.uint64), *(names[at] for names in named)]) for at in range(3))
    order = np.lexsort((low, high))
    new = _changes(high[order], low[order])
    union = np.cumsum(new) - 1
    ranks = np.empty(len(order), np.uint64)
    ranks[order] = union
    high, low = high[order][new], low[order][new]
    total = np.bincount(union, sizes[order], len(high))
    group = ((np.cumsum(total) - total) // _REGION_ROWS).astype(np.int64)
    cuts = [*np.flatnonzero(_changes(group)).tolist(), len(high)]
    ends = np.cumsum([len(names[0]) for names in named])
    rank_of = np.split(ranks, ends[:-1])
    layout = _Layout()
    for begin, end in itertools.pairwise(cuts):
        pieces = [
            piece
            for (source, row_of), mine in zip(sources, rank_of, strict=True)
            for first, last in [np.searchsorted(mine, (begin, end)).tolist()]
            for piece in source.slices(first, last, mine[first:last], row_of)
        ]
        yield layout.region(
            _Slices(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in _Slices.__slots__))
        )
    yield layout.directory(high, low)


class _Layout:
    """Writes regions one after the other, and then where everything is."""

    def __init__(self) -> None:
        self._bytes = 0
        self._places: list[tuple[int, int, int]] = []
        self._columns: list[NDArray[np.uint64]] = []

    def region(self, slices: _Slices) -> bytes:
        """Sorts values, joins equal ones, and leaves out dropped rows and values without rows."""
        order = np.lexsort((slices.low, slices.high, slices.ranks))
        counts = slices.counts[order]
        begins = (np.cumsum(slices.counts) - slices.counts)[order]
        rows = slices.rows[np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(len(slices.rows))]
        kept = rows != DROPPED
        counts = np.add.reduceat(kept, np.cumsum(counts) - counts, dtype=np.int64)
        ranks, high, low = slices.ranks[order], slices.high[order], slices.low[order]
        first_of_each = np.flatnonzero(_changes(ranks, high, low))
        counts = np.add.reduceat(counts, first_of_each)
        left = first_of_each[counts > 0]
        ranks, high, low, counts = ranks[left], high[left], low[left], counts[counts > 0]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        parts = [high.tobytes(), low.tobytes(), offsets.astype(np.uint64).tobytes(), rows[kept].tobytes()]
        content = b"".join(parts) + b"\0" * (-4 * int(offsets[-1]) % 8)

        columns, begins = np.unique(ranks, return_index=True)
        ends = np.append(begins, len(ranks))[1:]
        region = np.full(len(columns), len(self._places))
        self._columns.append(np.stack((columns, region, begins, ends)).astype(np.uint64))
        self._places.append((self._bytes, len(high), int(offsets[-1])))
        self._bytes += len(content)
        return content

    def directory(self, high: U64, low: U64) -> bytes:
        """Where everything is; `high` and `low` are the columns' keys by rank."""
        ranks, *where = np.concatenate([np.empty((4, 0), np.uint64), *self._columns], axis=1)
        columns = np.stack((high[ranks.astype(np.int64)], low[ranks.astype(np.int64)], *where))
        places = np.asarray(self._places, np.uint64).reshape(-1, 3).T
        trailer = np.asarray((columns.shape[1], places.shape[1]), np.uint64)
        return columns.tobytes() + np.ascontiguousarray(places).tobytes() + trailer.tobytes()


def _changes(*sorted_by: NDArray[Any]) -> NDArray[np.bool_]:
    """bool[n]: where a row differs from the one before it; the first does."""
    changes = np.ones(len(sorted_by[0]), np.bool_)
    if len(changes):
        changes[1:] = np.any([column[1:] != column[:-1] for column in sorted_by], axis=0)
    return changes
