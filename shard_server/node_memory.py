"""A node's ceiling on memory: what is set aside for whom, and what was not predicted.

The shares grow with the ceiling up to what they are worth; on a small node they are an eighth of it. `watch` compares the sum
with what the process does hold: what no prediction explains counts as used, so that an error of ours refuses writes rather
than ends the process.
"""

from __future__ import annotations

import asyncio
from typing import Final

import psutil

from shard_server.engine.memory import INDEX
from vectorfleet.ledger import Ledger

WRITES: Final = "writes that wait"
SEARCHES: Final = "searches that wait"
READS: Final = "reads"
STORES: Final = "stores' buffers and caches"
SEALING: Final = "sealing"
PROCESS: Final = "process"
BEYOND: Final = "beyond prediction"

WRITE_BYTES_MAX: Final = 256 << 20
"""Writes in memory that wait for their commit, over all replicas."""
SEARCH_BYTES_MAX: Final = 512 << 20
"""Queries in memory that wait for their search, over all calls."""
READ_BYTES_MAX: Final = 128 << 20
"""Answers to reads that are being made and sent: two threads, and those before them on their way."""
STORE_BYTES_MAX: Final = 256 << 20
"""RocksDB's blocks and what it has not moved to its files yet, over all replicas."""
SEALING_BYTES_MAX: Final = 64 << 20
PROCESS_BYTES: Final = 64 << 20
"""An idle node, with its threads and channels."""
WATCH_S: Final = 1.0


def shares(limit_bytes: int) -> dict[str, int]:
    """What is set aside under a ceiling: kind → bytes."""
    eighth = limit_bytes // 8
    most = {
        WRITES: WRITE_BYTES_MAX,
        SEARCHES: SEARCH_BYTES_MAX,
        READS: READ_BYTES_MAX,
        STORES: STORE_BYTES_MAX,
        SEALING: SEALING_BYTES_MAX,
    }
    return {PROCESS: PROCESS_BYTES, **{kind: min(size, eighth) for kind, size in most.items()}}


async def watch(ledger: Ledger) -> None:
    """Writes down, for ever, what the process holds beyond what was predicted."""
    process = psutil.Process()
    while True:
        memory = process.memory_info()
        ledger.hold(BEYOND, PROCESS, unpredicted(ledger.by_kind, memory.rss - memory.shared))
        await asyncio.sleep(WATCH_S)


def unpredicted(by_kind: dict[str, int], own_bytes: int) -> int:
    """Bytes of a process's own memory that no kind explains. Codes are mapped files, and not among its own."""
    return max(0, own_bytes - sum(size for kind, size in by_kind.items() if kind not in (INDEX, BEYOND)))
