"""The parts of a search and of a commit, and how the engine says that one has ended; it knows nothing of who looks.

A `Lap` is called at the end of each stage, which began when the one before it ended. Stages come again where a batch is worked on
in several blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Lap: TypeAlias = Callable[[str], None]

SEARCH: Final = {
    "filter": "rows that pass the filter are told",
    "compare": "rows without codes, or with `exact` all, are compared one by one",
    "lists": "the inverted lists to visit are chosen",
    "scan": "their codes are scanned",
    "rerank": "the best of the codes are compared on raw vectors",
    "rank": "the winners are scored in float64 and put in order",
    "ids": "ids and vectors of the hits are read",
    "payload": "payloads of the hits are looked up",
}
COMMIT: Final = {
    "room": "it waits for sealing that is behind, and looks whether the disk has room",
    "sync": "the log takes it, and is synced",
    "apply": "buffer, points and tombstones take it, and searches see it",
}


def untimed(stage: str) -> None:
    """The lap of work that nobody times."""
