"""A ceiling on bytes, checked before work is admitted: overload is an answer to the caller, not the OOM killer."""

from __future__ import annotations

from vectorfleet.errors import ResourceExhausted


class ByteBudget:
    """Counts bytes that one kind of work holds. Used from one event loop. Invariant: never above `bytes_max`."""

    def __init__(self, what: str, bytes_max: int) -> None:
        self._what = what
        self._bytes_max = bytes_max
        self._taken = 0

    @property
    def taken_bytes(self) -> int:
        """Bytes held at this moment."""
        return self._taken

    def take(self, size: int) -> None:
        """Admits `size` bytes. Raises `ResourceExhausted` (OVERLOADED) where they would pass the ceiling."""
        if self._taken + size > self._bytes_max:
            raise ResourceExhausted(
                f"{self._what} hold {self._taken} of {self._bytes_max} bytes; {size} more do not fit"
            )
        self._taken += size

    def give(self, size: int) -> None:
        """Gives back what `take` admitted."""
        self._taken -= size
