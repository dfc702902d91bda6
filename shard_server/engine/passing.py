"""The rows of a segment that pass a filter, remembered for as long as the filter is in use.

Payloads of sealed rows never change, so neither does who passes; who is alive is another matter (`bitmap`). Filters repeat: a
tenant, a language, a shop. The memory is bounded by `FILTERS_KEPT` bits a row, and taken only where filters are used.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine.index import SegmentIndex
from shard_server.engine.matching import matching_rows
from shard_server.engine.postings import Postings
from vectorfleet.v1 import types_pb2

FILTERS_KEPT: Final = 16
"""Filters remembered for each segment: 2 bytes a row when all are."""


class Passing:
    """The rows that pass one filter, alive or dead."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """Takes bool[rows]."""
        self.bits = np.packbits(mask, bitorder="little")
        """uint8[ceil(rows / 8)], low bits first."""
        self._per_list: tuple[SegmentIndex, NDArray[np.int64]] | None = None

    def per_list(self, index: SegmentIndex) -> NDArray[np.int64]:
        """int64[nlist]: how many of the rows stand in each list of the segment's index."""
        known = self._per_list
        if known is None or known[0] is not index:
            known = self._per_list = (index, index.rows_per_list(self.bits))
        return known[1]


class PassingRows:
    """Answers for one segment. Thread-safe."""

    def __init__(self, postings: Postings) -> None:
        self._postings = postings
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Passing] = OrderedDict()

    def of(self, wanted: types_pb2.Filter, key: bytes) -> Passing:
        """The rows that pass; `key` is the filter's deterministic serialisation."""
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        # Not under the lock: two searches may find out the same, none waits for another filter.
        found = Passing(matching_rows(wanted, self._postings))
        with self._lock:
            self._known[key] = found
            while len(self._known) > FILTERS_KEPT:
                self._known.popitem(last=False)
        return found

    @property
    def nbytes(self) -> int:
        """Heap bytes."""
        with self._lock:
            return sum(known.bits.nbytes for known in self._known.values())
