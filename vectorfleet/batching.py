"""Searches that wait together travel together: the policy of natural batching, as pure state.

There is no timer that makes anybody wait. When nothing of a lane is under way, a search leaves at once; while batches are
under way, searches queue, and all of them leave as one batch when one comes back. So a quiet process adds no delay, and a busy
one makes few large calls, which cost far less than many small ones. Routers batch what they ask of shards, clients what
they ask of routers.

Batches share what is in hand evenly, unless it is little. Else whoever comes back first finds nobody else waiting and goes on
alone: of 64 callers 63 came to ask together, and one by itself again and again, and a call costs as much as several queries.

A batch that takes long holds its place for `PATIENCE_S` only: behind a node that hangs, others must not wait.

Invariants: a batch has at most `weight_max` queries, or is a single search; a lane keeps the order of its searches; the queue is
bounded. Time is an argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

PATIENCE_S: Final = 0.1
SPLIT_MIN: Final = 8
"""So few are not split: a batch of its own costs as much as several queries."""

T = TypeVar("T")


@dataclass(slots=True)
class Lane(Generic[T]):
    """Searches that may share a batch: of one collection, with equal options."""

    in_flight_max: int
    """Batches under way before searches begin to queue, 1 or more."""
    weight_max: int
    split_min: int = SPLIT_MIN
    """A batch of so many may leave, however few its share would be."""
    queue: deque[tuple[T, int]] = field(default_factory=deque)
    under_way: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Batch number → when it left and its weight, in the order in which they left."""
    queued: int = 0
    """Weight of the queue."""
    next_batch: int = 0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self.queue and not self.under_way

    def put(self, item: T, weight: int) -> None:
        """Adds a search of `weight` queries to the end of the queue."""
        self.queue.append((item, weight))
        self.queued += weight

    def take(self, now_s: float) -> tuple[int, list[T]] | None:
        """The next batch to leave now, with its number, or None. Call it until it says None."""
        holding = self._holding(now_s)
        if not self.queue or len(holding) >= self.in_flight_max:
            return None
        in_hand = self.queued + sum([weight for _, weight in holding])
        share = min(self.weight_max, max(self.split_min, -(-in_hand // self.in_flight_max)))
        batch: list[T] = []
        weight = 0
        while self.queue and (not batch or weight + self.queue[0][1] <= share):
            item, item_weight = self.queue.popleft()
            batch.append(item)
            weight += item_weight
        self.queued -= weight
        return self.leave(now_s, weight), batch

    def leave(self, now_s: float, weight: int = 1) -> int:
        """Counts a batch that leaves now; returns its number. By itself: for a search that finds the lane idle."""
        number = self.next_batch
        self.next_batch += 1
        self.under_way[number] = now_s, weight
        return number

    def finished(self, batch: int) -> None:
        """A batch came back."""
        del self.under_way[batch]

    def wake_s(self, now_s: float) -> float | None:
        """When to call `take` again though no batch has come back; None: no need."""
        if not self.queue:
            return None
        return min([started_s for started_s, _ in self._holding(now_s)], default=now_s - PATIENCE_S) + PATIENCE_S

    def _holding(self, now_s: float) -> list[tuple[float, int]]:
        """When each batch left that still holds its place, and its weight."""
        return [batch for batch in self.under_way.values() if now_s < batch[0] + PATIENCE_S]
