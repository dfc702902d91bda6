"""The ceiling on bytes that a kind of request may hold in memory at once: checked before work is admitted.

A router's memory is cut into one budget for each kind of request; it holds nothing else that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vectorfleet.errors import ResourceExhausted

SEARCH_BYTES_MAX: Final = 4 * 1024**3
"""Bytes that searches under way may come to hold, as far as their size can be told beforehand."""
WRITE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Bytes of writes under way in one router."""
READ_BYTES_MAX: Final = 1024 * 1024 * 1024
"""The same for reads, as far as their size can be told beforehand."""


class ByteBudget:
    """Bytes of requests under way. Overload is refused, not queued; only a stream waits, since it need not be read."""

    def __init__(self, what: str, bytes_max: int) -> None:
        """Starts empty.

        Args:
            what: names the requests, for people.
            bytes_max: the ceiling. A single request is always admitted where nothing else is under way.
        """
        self._what = what
        self._bytes_max = bytes_max
        self._held = 0
        self._freed = asyncio.Event()

    @property
    def used_bytes(self) -> int:
        """Bytes under way."""
        return self._held

    @property
    def limit_bytes(self) -> int:
        """The ceiling."""
        return self._bytes_max

    def take(self, size_bytes: int) -> None:
        """Takes a request's bytes before it is worked on. Raises `ResourceExhausted` (OVERLOADED)."""
        if not self._has_room(size_bytes):
            raise ResourceExhausted(
                f"{self._what}: {size_bytes} bytes are asked for, {self._held} of {self._bytes_max} are under way"
            )
        self._held += size_bytes

    def give(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        self._held -= size_bytes
        self._freed.set()

    @contextlib.contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Takes a request's bytes, and gives them back when it is done. Raises as `take` does."""
        self.take(size_bytes)
        try:
            yield
        finally:
            self.give(size_bytes)

    async def room_for(self, size_bytes: int) -> None:
        """Waits until a request of so many bytes would be admitted: for a sender that can be made to wait, as a stream's."""
        while not self._has_room(size_bytes):
            self._freed.clear()
            await self._freed.wait()

    def _has_room(self, size_bytes: int) -> bool:
        return not self._held or self._held + size_bytes <= self._bytes_max


@dataclass(frozen=True)
class Budgets:
    """Of one router."""

    searches: ByteBudget
    writes: ByteBudget
    reads: ByteBudget

    @classmethod
    def under(cls, limit_bytes: int) -> Budgets:
        """Cuts up a ceiling; an eighth of it stays for the process itself. No budget is larger than it is worth."""
        eighth = limit_bytes // 8
        return cls(
            ByteBudget("searches", min(SEARCH_BYTES_MAX, 4 * eighth)),
            ByteBudget("writes", min(WRITE_BYTES_MAX, eighth)),
            ByteBudget("reads", min(READ_BYTES_MAX, 2 * eighth)),
        )

    @property
    def used_bytes(self) -> int:
        """Bytes of all calls under way."""
        return self.searches.used_bytes + self.writes.used_bytes + self.reads.used_bytes

    @property
    def limit_bytes(self) -> int:
        """The most that they may come to."""
        return self.searches.limit_bytes + self.writes.limit_bytes + self.reads.limit_bytes
