"""The ids of a segment's rows, and the way back: from an id to its row.

    ids       uint64[rows + 1] offsets, then UTF-8
    hashes    uint64[rows] XXH3-64, sorted, then uint32[rows]: an id's row by binary search

Both are memory-mapped, and the files of a new segment are made of the mappings of the old ones, piece by piece: a merge of
any size holds four bytes a row, the rows' new numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from shard_server.engine.bitmap import LiveRows

_CHUNK_ROWS: Final = 1 << 16
_DROPPED: Final = np.uint32(0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of rows 0 to n - 1. Thread-safe."""

    offsets: NDArray[np.uint64] = field(repr=False)
    """uint64[n + 1] into `utf8`."""
    utf8: NDArray[np.uint8] = field(repr=False)
    hashes: NDArray[np.uint64] = field(repr=False)
    """uint64[n], ascending."""
    hash_rows: NDArray[np.uint32] = field(repr=False)
    """uint32[n]: the row of each hash; those of equal hashes ascend."""

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> Ids:
        """Of ids in memory, one a row."""
        offsets = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(np.fromiter(map(len, ids), np.uint64, len(ids)), out=offsets[1:])
        hashes = _hashes_of(ids)
        order = np.argsort(hashes, kind="stable")
        return cls(offsets, np.frombuffer(b"".join(ids), np.uint8), hashes[order], order.astype(np.uint32))

    @classmethod
    def mapped(cls, ids: NDArray[np.uint8], hashes: NDArray[np.uint8], rows: int) -> Ids:
        """Of the content of the two files."""
        edge = (rows + 1) * 8
        middle = rows * 8
        return cls(
            ids[:edge].view(np.uint64), ids[edge:], hashes[:middle].view(np.uint64), hashes[middle:].view(np.uint32)
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def one(self, row: int) -> bytes:
        """The id of a row, as UTF-8."""
        return self.utf8[int(self.offsets[row]) : int(self.offsets[row + 1])].tobytes()

    def many(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The ids of many rows, as UTF-8."""
        held = self.utf8.data
        begins, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        return [held[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]

    def joined(self, rows: NDArray[np.int64]) -> bytes:
        """The ids of ascending rows (at least one), one after the other: each run of rows is one copy."""
        last = np.flatnonzero(np.diff(rows, append=-1) != 1)
        first = np.concatenate([[0], last[:-1] + 1])
        held = self.utf8.data
        begins, ends = self.offsets[rows[first]].tolist(), self.offsets[rows[last] + 1].tolist()
        return b"".join(held[begin:end] for begin, end in zip(begins, ends, strict=True))

    def rows_of(self, ids: Sequence[bytes], live: LiveRows) -> NDArray[np.int64]:
        """The live row of each id: int64[n], -1 where there is none."""
        result = np.full(len(ids), -1, np.int64)
        if not ids:
            return result
        wanted = _hashes_of(ids)
        places = np.searchsorted(self.hashes, wanted)
        # A hash may stand more than once (two ids, or an id whose older row is dead): look on while it is the same.
        for position in np.flatnonzero(places < len(self)):
            place = int(places[position])
            while place < len(self) and self.hashes[place] == wanted[position]:
                row = int(self.hash_rows[place])
                if self.one(row) == ids[int(position)] and bool(live.is_live(np.asarray([row]))[0]):
                    result[position] = row
                    break
                place += 1
        return result


Taken = tuple[Ids, NDArray[np.int64]]
"""Ids, and int64[r]: the rows of them that go into a new segment, ascending."""


def ids_parts(sources: Sequence[Taken]) -> Iterator[bytes]:
    """The content of the file `ids` of a segment with the rows of `sources`, in order."""
    end = np.uint64(0)
    yield end.tobytes()
    for ids, rows in _chunks(sources):
        ends = np.cumsum(ids.offsets[rows + 1] - ids.offsets[rows]) + end
        yield ends.tobytes()
        end = ends[-1]
    for ids, rows in _chunks(sources):
        yield ids.joined(rows)


def hashes_parts(sources: Sequence[Taken]) -> Iterator[bytes]:
    """The content of the file `hashes` of a segment with the rows of `sources`, in order."""
    renumbered = list(_renumbered(sources))
    # Merging twice costs less than holding what the second half of the file needs until the first is written.
    for hashes, _ in _merged(renumbered):
        yield hashes.tobytes()
    for _, rows in _merged(renumbered):
        yield rows.tobytes()


def _hashes_of(ids: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.fromiter((xxhash.xxh3_64_intdigest(point_id) for point_id in ids), np.uint64, len(ids))


def _chunks(sources: Sequence[Taken]) -> Iterator[Taken]:
    for ids, rows in sources:
        for first in range(0, len(rows), _CHUNK_ROWS):
            yield ids, rows[first : first + _CHUNK_ROWS]


def _renumbered(sources: Sequence[Taken]) -> Iterator[tuple[Ids, NDArray[np.uint32]]]:
    """The new number of each row, with its ids."""
    rows = 0
    for ids, taken in sources:
        new = np.full(len(ids), _DROPPED, np.uint32)
        new[taken] = np.arange(rows, rows + len(taken), dtype=np.uint32)
        rows += len(taken)
        yield ids, new


def _merged(
    sources: Sequence[tuple[Ids, NDArray[np.uint32]]],
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """The hashes in order with their new rows, in ranges of hashes: they are spread evenly, so a range is about a chunk."""
    ranges = -(-sum(map(len, (ids for ids, _ in sources))) // _CHUNK_ROWS)
    bounds = np.asarray([number * 2**64 // ranges for number in range(1, ranges)], np.uint64)
    places = [[0, *np.searchsorted(ids.hashes, bounds).tolist(), len(ids)] for ids, _ in sources]
    for number in range(ranges):
        slices = [slice(*place[number : number + 2]) for place in places]
        rows = np.concatenate([new[ids.hash_rows[span]] for (ids, new), span in zip(sources, slices, strict=True)])
        hashes = np.concatenate([ids.hashes[span] for (ids, _), span in zip(sources, slices, strict=True)])
        kept = rows != _DROPPED
        rows, hashes = rows[kept], hashes[kept]
        order = np.argsort(hashes, kind="stable")
        yield hashes[order], rows[order]
