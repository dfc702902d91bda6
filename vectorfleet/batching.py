"""Searches that wait together travel together: the policy of natural batching, as pure state.

There is no timer that makes anybody wait. When nothing of a lane is under way, a search leaves at once; while batches are
under way, searches queue, and all of them leave as one batch when one comes back. So a quiet process adds no delay, and a busy
one makes few large calls, which cost far less than many small ones. Routers batch what they ask of shards, clients what
they ask of routers.

A batch that takes long holds its place for `PATIENCE_S` only: behind a node that hangs, others must not wait.

Invariants: a batch has at most `weight_max` queries, or is a single search; a lane keeps the order of its searches; the queue is
bounded. Time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

PATIENCE_S: Final = 0.1

T = TypeVar("T")


@dataclass(slots=True)
class Lane(Generic[T]):
    """Searches that may share a batch: of one collection, with equal options."""

    in_flight_max: int
    """Batches under way before searches begin to queue, 1 or more."""
    weight_max: int
    queue: deque[tuple[T, int]] = field(default_factory=deque)
    started_s: dict[int, float] = field(default_factory=dict)
    """Batch number → when it left, in the order in which they left."""
    next_batch: int = 0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self.queue and not self.started_s

    def put(self, item: T, weight: int) -> None:
        """Adds a search of `weight` queries to the end of the queue."""
        self.queue.append((item, weight))

    def take(self, now_s: float) -> tuple[int, list[T]] | None:
        """The next batch to leave now, with its number, or None. Call it until it says None."""
        if not self.queue or len(self._leave_s(now_s)) >= self.in_flight_max:
            return None
        batch: list[T] = []
        weight = 0
        while self.queue and (not batch or weight + self.queue[0][1] <= self.weight_max):
            item, item_weight = self.queue.popleft()
            batch.append(item)
            weight += item_weight
        return self.leave(now_s), batch

    def leave(self, now_s: float) -> int:
        """Counts a batch that leaves now; returns its number. By itself: for a search that finds the lane idle."""
        number = self.next_batch
        self.next_batch += 1
        self.started_s[number] = now_s
        return number

    def finished(self, batch: int) -> None:
        """A batch came back."""
        del self.started_s[batch]

    def wake_s(self, now_s: float) -> float | None:
        """When to call `take` again though no batch has come back; None: no need."""
        if not self.queue:
            return None
        return min(self._leave_s(now_s), default=now_s)

    def _leave_s(self, now_s: float) -> list[float]:
        """When each batch that still holds its place will lose it."""
        return [started + PATIENCE_S for started in self.started_s.values() if now_s < started + PATIENCE_S]
