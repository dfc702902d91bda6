"""The payloads of a buffer's rows, and postings of as many of them as were asked for.

Writers only keep the bytes; the first filtered search, or the sealing, reads them. So a write costs no more than before, and
a search reads only what came since the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from shard_server.engine.postings import BLOCK_ROWS, Blocks, Postings


class BufferTerms:
    """Written by one thread at a time, read by any."""

    def __init__(self) -> None:
        self._payloads: list[bytes] = []
        self._payload_bytes = 0
        self._lock = threading.Lock()
        self._blocks = Blocks()

    @property
    def nbytes(self) -> int:
        """Heap bytes."""
        return self._payload_bytes + self._blocks.nbytes

    def append(self, payloads: Sequence[bytes]) -> None:
        """Adds rows; an empty payload: none."""
        self._payloads.extend(payloads)
        self._payload_bytes += sum(map(len, payloads))

    def of_rows(self, rows: int) -> tuple[Postings, ...]:
        """Postings of rows that follow one another from the first on: of `rows` rows at least."""
        with self._lock:
            while self._blocks.rows < rows:
                self._blocks.add(self._payloads[self._blocks.rows : self._blocks.rows + BLOCK_ROWS])
            return self._blocks.postings
