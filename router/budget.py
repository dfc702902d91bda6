"""The ceiling on bytes that a kind of request may hold in memory at once: checked before work is admitted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from vectorfleet.errors import ResourceExhausted


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

    @contextlib.contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Holds a request's bytes while it is worked on. Raises `ResourceExhausted` (OVERLOADED)."""
        if not self._has_room(size_bytes):
            raise ResourceExhausted(f"{self._what} of {self._held} bytes are under way already")
        self._held += size_bytes
        try:
            yield
        finally:
            self._held -= size_bytes
            self._freed.set()

    async def room_for(self, size_bytes: int) -> None:
        """Waits until a request of so many bytes would be admitted: for a sender that can be made to wait, as a stream's."""
        while not self._has_room(size_bytes):
            self._freed.clear()
            await self._freed.wait()

    def _has_room(self, size_bytes: int) -> bool:
        return not self._held or self._held + size_bytes <= self._bytes_max
