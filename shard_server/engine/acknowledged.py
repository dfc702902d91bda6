"""How far writes were acknowledged: a witness beside the store, against a log that was cut short.

A log whose last records are lost looks just like one that ends there: a crash leaves the same. So the last acknowledged seqno is
noted in a file of its own after each commit, without a sync: a killed process loses nothing of it, and after a power cut it is
at most behind, never ahead. Opening compares the two. It is no truth of its own: an unreadable one is replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from pathlib import Path
from typing import Final

import xxhash

from shard_server.engine import files
from vectorfleet.errors import DataLoss

_KIND: Final = b"VF-ACKNO"
_CHECKSUM: Final = struct.Struct("<Q")
_BYTES: Final = files.HEADER_BYTES + _CHECKSUM.size
_log = logging.getLogger(__name__)


class Acknowledged:
    """The witness of one replica. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Names the file; it is made with the first note."""
        self._path = path
        self._descriptor: int | None = None

    def seqno(self) -> int:
        """The last seqno that was acknowledged, as far as is known; 0: nothing is."""
        try:
            raw = self._path.read_bytes()
            head, checksum = raw[: files.HEADER_BYTES], raw[files.HEADER_BYTES :]
            if len(raw) != _BYTES or _CHECKSUM.unpack(checksum)[0] != xxhash.xxh3_64_intdigest(head):
                raise DataLoss(f"{self._path} does not match its checksum")
            return files.parse_header(head, _KIND, self._path)[1]
        except FileNotFoundError:
            return 0
        except (DataLoss, OSError) as error:
            _log.warning("how far writes were acknowledged is not known: %s", error)
            return 0

    def note(self, seqno: int) -> None:
        """Replaces it. A note that fails leaves a witness that says less, or nothing; it is no reason to refuse writes."""
        head = files.header(_KIND, 0, seqno)
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.pwrite(self._descriptor, head + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(head)), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
