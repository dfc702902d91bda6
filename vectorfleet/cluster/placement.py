"""Which shard holds a point, and which shards a search must visit.

`placement` is a kind of its own so that whole inverted lists can be placed on shards one day (`IVF_LIST`); today there is one,
`HASH`: XXH3-64 of the id's UTF-8 falls into the range of exactly one shard. Ranges, not remainders, so that a shard can be
split without moving the points of the others. Pure; needs xxhash, which the client does not install: never import it there.

Invariant: the ranges of a placement cover all 64-bit values, each once. The hash and `hash_ranges` are part of the data on
disk: a change of either would lose every point, so golden tests hold them.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment

HASH_SPACE: Final = 1 << 64


class PlacementKind(enum.Enum):
    """How points are spread over shards."""

    HASH = "hash"


class Placement(Protocol):
    """Where points go and where they are looked for."""

    @property
    def kind(self) -> PlacementKind:
        """Which rule it follows."""

    def shards_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Finds the shard of each point.

        Args:
            ids: valid UTF-8.

        Returns:
            int32[len(ids)]: shard numbers.
        """

    def shards_to_search(self) -> tuple[int, ...]:
        """The shards that a query must visit to see every point, ascending."""


def point_hash(point_id: str) -> int:
    """XXH3-64 of the id's UTF-8."""
    return xxhash.xxh3_64_intdigest(point_id.encode())


def hash_ranges(shards: int) -> tuple[tuple[int, int], ...]:
    """Cuts the hash space into `shards` ranges of equal size, up to one, as (first, last), both included."""
    if shards < 1:
        raise ValueError(f"a collection has at least one shard, not {shards}")
    firsts = [HASH_SPACE * shard // shards for shard in range(shards + 1)]
    return tuple((first, after - 1) for first, after in itertools.pairwise(firsts))


class HashPlacement:
    """Placement by the hash of the id."""

    kind: Final = PlacementKind.HASH

    def __init__(self, shards: Sequence[ShardAssignment]) -> None:
        """Takes the shards of one collection, in any order.

        Raises:
            ValueError: their ranges leave a gap or overlap.
        """
        ordered = sorted(shards, key=lambda shard: shard.hash_first)
        expected = 0
        for shard in ordered:
            if shard.hash_first != expected or shard.hash_last < shard.hash_first:
                raise ValueError(f"the hash ranges of the shards leave a gap or overlap at {expected:#018x}")
            expected = shard.hash_last + 1
        if expected != HASH_SPACE:
            raise ValueError(f"the hash ranges of the shards end at {expected:#018x}, not at the end of the hash space")
        self._last = np.array([shard.hash_last for shard in ordered], np.uint64)
        self._number = np.array([shard.shard for shard in ordered], np.int32)
        self._all = tuple(sorted(shard.shard for shard in ordered))

    def shards_of(self, ids: Sequence[str]) -> NDArray[np.int32]:
        """Finds the shard of each point; see `Placement`."""
        digest = xxhash.xxh3_64_intdigest
        hashes = np.fromiter((digest(point_id.encode()) for point_id in ids), np.uint64, len(ids))
        return self._number[np.searchsorted(self._last, hashes)]

    def shards_to_search(self) -> tuple[int, ...]:
        """All of them: a hash says nothing about nearness."""
        return self._all


def placement_for(record: CollectionRecord) -> Placement:
    """The placement of a collection. Raises `ValueError` where its shards do not cover the hash space."""
    return HashPlacement(record.shards)
