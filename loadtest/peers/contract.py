"""What a peer's adapter does for its worker, and the lines of JSON between worker and benchmark.

The benchmark writes a line for each thing to do, `{"do": "look", "effort": 40}`, and reads a line for each that is done:
`{"done": {…}}`, or `{"failed": "why"}`. The end of the worker's input means: stop. Vectors and answers travel as files of a
folder that both know: base.npy, queries.npy, rows.npy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from loadtest.callers import Ask, AskBlocking, Floats

K: Final = 10
BASE: Final = "base.npy"
QUERIES: Final = "queries.npy"
ROWS: Final = "rows.npy"
"""int64 (queries, K): what the last ask answered; -1 where it answered fewer, -2 in rows of queries that were not asked."""


class Peer(Protocol):
    """A store under measurement, in its worker. Ids of points are their row numbers; distance is L2."""

    least: int
    most: int
    """Bounds of the search effort."""

    def start(self) -> None:
        """Starts the store, where it is a server."""
        ...

    def build(self, base: Floats) -> None:
        """Stores vectors, float32 (points, dim), and returns when all are in the index."""
        ...

    def look(self, effort: int) -> None:
        """Sets how hard the searches to come look."""
        ...

    def says(self) -> str:
        """The version, the index and what `effort` is, for people."""
        ...

    def servers(self) -> list[int]:
        """The processes that serve: they and their children count as the store. Empty: it is in the worker."""
        ...

    def stop(self) -> None:
        """Ends what `start` began. Called once, also where `start` failed or was never called."""
        ...


@runtime_checkable
class AskedByTasks(Protocol):
    """A peer whose client is asynchronous."""

    def asking(self, callers: int) -> AbstractAsyncContextManager[Ask]:
        """Connects for so many callers at once."""
        ...


@runtime_checkable
class AskedByThreads(Protocol):
    """A peer whose client blocks, or that is a library."""

    def connect(self) -> AbstractContextManager[AskBlocking]:
        """Connects one caller."""
        ...


Message: TypeAlias = Mapping[str, Any]


class PeerError(Exception):
    """A peer cannot be measured; the message says why, in one line."""


def encoded(message: Message) -> bytes:
    """One line."""
    return json.dumps(dict(message)).encode() + b"\n"


def outcome(line: bytes) -> Message:
    """Reads what a worker answered; raises `PeerError` for a failure and for what is no answer."""
    try:
        message = json.loads(line)
    except ValueError:
        raise PeerError(f"its worker wrote {line[:80]!r} where an answer was due") from None
    if isinstance(message, dict) and isinstance(message.get("done"), dict):
        done: Message = message["done"]
        return done
    if isinstance(message, dict) and "failed" in message:
        raise PeerError(str(message["failed"]))
    raise PeerError(f"its worker wrote {line[:80]!r} where an answer was due")


def scratch_files(folder: Path) -> tuple[Path, Path, Path]:
    """Base, queries, rows."""
    return folder / BASE, folder / QUERIES, folder / ROWS
