"""Natural batching on an event loop: lanes of what may travel together, the tasks that carry the batches, and the clock.

The policy is `batching.Lane`'s.

Invariants: every item is handed to `carry` in one batch, or comes back from `close`, or both; a lane
without work takes no memory; no task outlives `close`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from vectorfleet.batching import Lane

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Lanes(Generic[K, T]):
    """Lanes by key. Belongs to one event loop."""

    def __init__(self, carry: Callable[[K, list[T]], Awaitable[None]], *, in_flight_max: int, weight_max: int) -> None:
        """Makes no lane yet.

        Args:
            carry: takes one batch to its end. It raises nothing: what goes wrong is its items' to learn.
            in_flight_max: batches of one lane under way before items begin to queue.
            weight_max: the most that one batch weighs.
        """
        self._carry = carry
        self._in_flight_max = in_flight_max
        self._weight_max = weight_max
        self._lanes: dict[K, Lane[T]] = {}
        self._wakes: dict[K, asyncio.TimerHandle] = {}
        self._under_way: dict[asyncio.Task[None], list[T]] = {}
        self._closed = False

    def put(self, key: K, item: T, weight: int = 1) -> None:
        """Adds an item; it leaves at once where its lane allows."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self._in_flight_max, self._weight_max)
        lane.put(item, weight)
        self._pump(key, lane)

    async def close(self) -> list[T]:
        """Cancels all batches under way; returns every item that was in hand, for their owner to settle."""
        self._closed = True
        for wake in self._wakes.values():
            wake.cancel()
        waiting = [item for lane in self._lanes.values() for item, _ in lane.queue]
        under_way = dict(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        return waiting + [item for batch in under_way.values() for item in batch]

    def _pump(self, key: K, lane: Lane[T]) -> None:
        """Lets every batch leave that may leave now."""
        if self._closed:
            return
        while (taken := lane.take(time.monotonic())) is not None:
            task = asyncio.create_task(self._run(key, lane, *taken))
            self._under_way[task] = taken[1]
            task.add_done_callback(self._under_way.pop)
        wake = self._wakes.pop(key, None)
        if wake is not None:
            wake.cancel()
        if lane.idle:
            self._lanes.pop(key, None)
        elif (wake_s := lane.wake_s(time.monotonic())) is not None:
            loop = asyncio.get_running_loop()
            self._wakes[key] = loop.call_later(max(0.0, wake_s - time.monotonic()), self._pump, key, lane)

    async def _run(self, key: K, lane: Lane[T], number: int, batch: list[T]) -> None:
        try:
            await self._carry(key, batch)
        finally:
            lane.finished(number)
            self._pump(key, lane)
