"""The process that holds a peer's client: `python -m loadtest.peers.worker MODULE:CLASS FOLDER`, run by a peer's own Python.

It reads what to do from its input and answers on its output (see `contract.py`); whatever a library prints goes to its
standard error. It measures the CPU time of itself and of the store's processes, so that a load generator that is the
bottleneck is seen to be. When its input ends it stops the store and goes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from loadtest.callers import Asked, Load, Watch, tasks, threads
from loadtest.peers.contract import AskedByTasks, AskedByThreads, K, Peer, encoded, scratch_files
from loadtest.processes import cpu_s, family, resident_bytes


class Work:
    """The things that a worker does; each method is one, named as in the protocol, and returns what is answered."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        base, queries, self._rows = scratch_files(folder)
        self._peer = peer
        self._base_path = base
        self._queries = np.load(queries)

    def start(self) -> dict[str, Any]:
        """Starts the store."""
        self._peer.start()
        return {}

    def build(self) -> dict[str, Any]:
        """Loads and indexes all vectors."""
        base = np.load(self._base_path, mmap_mode="r")
        start_s = time.perf_counter()
        self._peer.build(base)
        taken_s = time.perf_counter() - start_s
        about = {"says": self._peer.says(), "least": self._peer.least, "most": self._peer.most}
        return {"points_s": len(base) / taken_s, **about}

    def look(self, effort: int) -> dict[str, Any]:
        """Sets the effort."""
        self._peer.look(effort)
        return {"says": self._peer.says()}

    def ask(self, callers: int, size: int, seconds: float, warm_up_s: float) -> dict[str, Any]:
        """Asks, and measures."""
        taken = _Taken(self._peer)
        asked = self._asked(Load(callers, size, seconds, warm_up_s), taken)
        rows = np.full((len(self._queries), K), -2, np.int64)
        for query, found in asked.rows.items():
            rows[query] = found
        np.save(self._rows, rows)
        answered = asked.latencies.queries_s * (seconds + warm_up_s)
        cpu_ms = {"client": taken.client_s * 1e3 / answered, "servers": taken.servers_s * 1e3 / answered}
        return {**asdict(asked.latencies), "cpu_ms": cpu_ms, "resident_bytes": taken.resident_bytes}

    def _asked(self, load: Load, watch: Watch) -> Asked:
        peer = self._peer
        if isinstance(peer, AskedByThreads):
            return threads(peer.connect, self._queries, load, watch)
        assert isinstance(peer, AskedByTasks), "an adapter is asked in one way or the other"
        return asyncio.run(self._by_tasks(peer, load, watch))

    async def _by_tasks(self, peer: AskedByTasks, load: Load, watch: Watch) -> Asked:
        async with peer.asking(load.callers) as ask:
            return await tasks(ask, self._queries, load, watch)


class _Taken(Watch):
    """CPU and memory of this process and of the store's, while the callers ask: some stores have a process for each."""

    client_s = 0.0
    servers_s = 0.0
    resident_bytes = 0

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def begin(self) -> None:
        self._itself = psutil.Process()
        self._servers = [process for pid in self._peer.servers() for process in family(pid)]
        self._before = cpu_s(self._itself), [_spent_s(process) for process in self._servers]

    def end(self) -> None:
        client_s, servers_s = self._before
        self.client_s = cpu_s(self._itself) - client_s
        # One that has gone meanwhile counts as idle: it was none that served.
        spent_s = [max(0.0, _spent_s(one) - before) for one, before in zip(self._servers, servers_s, strict=True)]
        self.servers_s = sum(spent_s)
        self.resident_bytes = resident_bytes(self._servers or [self._itself])


def serve(work: Work, lines: Any, answer: Callable[[bytes], object]) -> None:
    """Does what the lines say, until they end. A failure is answered and does not end the worker."""
    for line in lines:
        wanted = json.loads(line)
        try:
            answer(encoded({"done": getattr(work, wanted.pop("do"))(**wanted)}))
        except Exception as error:
            traceback.print_exc()
            answer(encoded({"failed": said_in_one_line(error)}))


def said_in_one_line(error: BaseException) -> str:
    """What went wrong first, where several did at once."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _spent_s(process: psutil.Process) -> float:
    try:
        return cpu_s(process)
    except psutil.NoSuchProcess:
        return 0.0


def main() -> None:
    """Makes the adapter and serves."""
    parser = argparse.ArgumentParser(description="Hold one peer of the benchmark; see loadtest/peers/contract.py.")
    parser.add_argument("adapter", help="MODULE:CLASS")
    parser.add_argument("folder", type=Path, help="vectors, answers and the store's own files")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark stops its workers by closing their input
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # or by this, in the middle of a call
    # Libraries print; the answers have a descriptor of their own.
    answers = os.dup(1)
    os.dup2(2, 1)
    module, _, name = given.adapter.partition(":")
    peer: Peer | None = None
    try:
        peer = getattr(importlib.import_module(module), name)(given.folder / "store")
        assert peer is not None
        serve(Work(peer, given.folder), sys.stdin.buffer, lambda line: os.write(answers, line))
    finally:
        if peer is not None:
            peer.stop()


if __name__ == "__main__":
    main()
