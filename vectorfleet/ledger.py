"""What a process holds in memory, by kind, under one ceiling: predicted and written down before the work begins. Pure.

Two ways in. `reserve` asks, and is refused where the sum would pass the ceiling: for what can be refused or wait. `hold` states
what is there already, such as the buffers of a replica after a write: it is never refused, and what is asked for next sees it.

Some kinds have a share set aside, so that searches and deletes go on when growth has taken the rest: it counts as used whether it
is or not, and nobody else gets it.

Invariant: what is reserved beyond the shares never takes the sum over the ceiling; only `hold` may.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping

from vectorfleet.errors import ResourceExhausted


class Ledger:
    """Of one process; thread-safe."""

    def __init__(self, limit_bytes: int, set_aside: Mapping[str, int] | None = None) -> None:
        """Starts with the shares alone.

        Args:
            limit_bytes: the ceiling.
            set_aside: kind → bytes that are kept for it.
        """
        self.limit_bytes = limit_bytes
        self._set_aside = dict(set_aside or {})
        self._reserved: defaultdict[str, int] = defaultdict(int)
        self._held: dict[tuple[str, str], int] = {}
        self._sums: defaultdict[str, int] = defaultdict(int)
        """Of each kind, reserved and held."""
        self._lock = threading.Lock()

    @classmethod
    def without_limit(cls) -> Ledger:
        """Counts and refuses nothing."""
        return cls(1 << 62)

    @property
    def used_bytes(self) -> int:
        """The sum that the ceiling is on."""
        with self._lock:
            return sum(self._kinds().values())

    @property
    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind; where its share is larger, that."""
        with self._lock:
            return self._kinds()

    def room_bytes(self) -> int:
        """What a kind without a share of its own could still reserve; never negative."""
        return max(0, self.limit_bytes - self.used_bytes)

    def reserve(self, kind: str, size: int) -> None:
        """Takes bytes for work to come. Raises `ResourceExhausted` (MEMORY_FULL), with numbers, where they do not fit."""
        with self._lock:
            before = self._kinds()
            of_kind = before.get(kind, 0)
            grown = max(of_kind, self._sums[kind] + size)
            used = sum(before.values())
            if grown > of_kind and used - of_kind + grown > self.limit_bytes:
                raise ResourceExhausted(
                    f"{kind}: {size} bytes are asked for, {used} of {self.limit_bytes} are used", reason="MEMORY_FULL"
                )
            self._reserved[kind] += size
            self._sums[kind] += size

    def release(self, kind: str, size: int) -> None:
        """Gives back what `reserve` took."""
        with self._lock:
            self._reserved[kind] -= size
            self._sums[kind] -= size
            assert self._reserved[kind] >= 0, f"more of {kind} is given back than was taken"

    @contextlib.contextmanager
    def reserving(self, kind: str, size: int) -> Iterator[None]:
        """Reserves bytes for the time of a block."""
        self.reserve(kind, size)
        try:
            yield
        finally:
            self.release(kind, size)

    def hold(self, kind: str, owner: str, size: int) -> None:
        """States what an owner holds of a kind now, in the place of what it held; 0: nothing more."""
        with self._lock:
            self._sums[kind] += size - self._held.get((kind, owner), 0)
            if size:
                self._held[kind, owner] = size
            else:
                self._held.pop((kind, owner), None)

    def _kinds(self) -> dict[str, int]:
        kinds = {kind: size for kind, size in self._sums.items() if size}
        for kind, size in self._set_aside.items():
            kinds[kind] = max(kinds.get(kind, 0), size)
        return kinds
