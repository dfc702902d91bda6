"""What a replica answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    unsealed_writes: int
    """Log entries of points that only the buffers hold: what a restart would replay."""
    disk_bytes: int
    index_bytes: int
    memory_bytes: int
    bytes_of: Mapping[str, int]
    """What they are spent on: buffers, tombstones and filters are heap; codes, terms and the other files of segments, by their
    names, are mapped, and resident as far as they are read."""
