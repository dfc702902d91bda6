"""The ceiling on bytes that a kind of request may hold in memory at once: checked before work is admitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vectorfleet.errors import ResourceExhausted


class ByteBudget:
    """Bytes of requests under way; overload is refused, not queued."""

    def __init__(self, what: str, bytes_max: int) -> None:
        """Starts empty.

        Args:
            what: names the requests, for people.
            bytes_max: the ceiling. A single request is always admitted where nothing else is under way.
        """
        self._what = what
        self._bytes_max = bytes_max
        self._held = 0

    @contextlib.contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Holds a request's bytes while it is worked on. Raises `ResourceExhausted` (OVERLOADED)."""
        if self._held and self._held + size_bytes > self._bytes_max:
            raise ResourceExhausted(f"{self._what} of {self._held} bytes are under way already")
        self._held += size_bytes
        try:
            yield
        finally:
            self._held -= size_bytes
