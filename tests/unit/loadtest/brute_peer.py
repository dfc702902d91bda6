"""A peer that needs nothing installed: brute force over as many rows as the effort says, with a child process for a server."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.callers import Ask, AskBlocking, Floats, Rows
from loadtest.peers.contract import K


class Brute:
    """Sees the first `effort` rows."""

    least, most = 100, 1_000

    def __init__(self, folder: Path) -> None:
        self._effort = self.least
        self._server: subprocess.Popen[bytes] | None = None
        self._base: Any = None

    def start(self) -> None:
        self._server = subprocess.Popen(["sleep", "600"])

    def build(self, base: Floats) -> None:
        print("a library that prints on standard output")
        self._base = np.array(base)

    def look(self, effort: int) -> None:
        self._effort = effort

    def says(self) -> str:
        return f"brute force over {self._effort} rows"

    def servers(self) -> list[int]:
        assert self._server is not None
        return [self._server.pid]

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def answer(self, queries: Floats) -> Rows:
        apart = ((queries[:, None, :] - self._base[None, : self._effort]) ** 2).sum(axis=2)
        return np.argsort(apart, axis=1)[:, :K]


class BruteByThreads(Brute):
    @contextlib.contextmanager
    def connect(self) -> Iterator[AskBlocking]:
        yield self.answer


class BruteByTasks(Brute):
    @contextlib.asynccontextmanager
    async def asking(self, callers: int) -> AsyncIterator[Ask]:
        async def ask(queries: Floats) -> Rows:
            return self.answer(queries)

        yield ask


class Stubborn(BruteByThreads):
    """Its server outlives it."""

    def stop(self) -> None:
        pass


class Broken(BruteByThreads):
    def build(self, base: Floats) -> None:
        raise RuntimeError("no\nroom")


class Busy(BruteByThreads):
    """Never done with building."""

    def build(self, base: Floats) -> None:
        threading.Event().wait(600)


class Absent(BruteByThreads):
    def __init__(self, folder: Path) -> None:
        raise ModuleNotFoundError("No module named 'its_client'")
