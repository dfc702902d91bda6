"""Which shape a codebook gets where the creator of the collection names none.

The controller trains with it, and `vectorfleet sizing` predicts with it: one rule, so that the prediction is of the index
that will be there. Pure functions of counts.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from vectorfleet import limits
from vectorfleet.v1 import types_pb2

LIST_POINTS_MIN: Final = 39
"""Points an inverted list below which FAISS holds a centroid for badly trained."""
SAMPLE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Memory of one training's sample."""


class CodebookShape(NamedTuple):
    """The parameters of one training."""

    nlist: int
    m: int


def codebook_shape(kind: int, dim: int, points: int, shards: int, nlist: int = 0, m: int = 0) -> CodebookShape:
    """Chooses nlist and m where the creator of the collection did not.

    nlist: the power of two nearest to 4·√(points of a shard), since each shard goes through lists of its own; but not so large
    that a list would get fewer than 39 points of the sample.
    m: half of the dimensions for 4-bit codes (FastScan), a quarter for 8-bit codes, rounded up.

    Args:
        kind: `vectorfleet.v1.IndexKind` as a number; not FLAT.
        dim: of the collection.
        points: of the collection, now.
        shards: among which they are spread.
        nlist: the creator's; 0: choose. Cut to the size of the sample, without which training is impossible.
        m: the creator's; 0: choose.
    """
    sample = sample_points_max(dim, points)
    if nlist:
        nlist = max(1, min(nlist, sample))
    else:
        nlist = min(lists_of(points / shards), _power_of_two_below(sample // LIST_POINTS_MIN), limits.NLIST_MAX)
    return CodebookShape(nlist, m or math.ceil(dim / (4 if kind == types_pb2.INDEX_KIND_IVF_PQ else 2)))


def lists_of(points: float) -> int:
    """The power of two nearest to 4·√points; `points`: of one shard."""
    return int(2 ** round(math.log2(4 * math.sqrt(max(1, points)))))


def sample_points_max(dim: int, points: int) -> int:
    """Points that a training's memory allows."""
    return min(points, SAMPLE_BYTES_MAX // (4 * dim))


def _power_of_two_below(value: int) -> int:
    return 1 << (max(1, value).bit_length() - 1)
