"""Natural batching on an event loop: lanes of what may travel together, the batches under way, and the clock.

The policy is `batching.Lane`'s.

Invariants: every item is handed to `begin` in one batch, or comes back from `close`, or both; a lane
without work takes no memory; no batch outlives `close`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from vectorfleet.batching import Lane

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Lanes(Generic[K, T]):
    """Lanes by key. Belongs to one event loop."""

    def __init__(
        self, begin: Callable[[K, list[T]], asyncio.Future[None]], *, in_flight_max: int, weight_max: int
    ) -> None:
        """Makes no lane yet.

        Args:
            begin: sends one batch on its way; what it returns is done when the batch has come to its end, and ends the batch
                where it is cancelled. It raises nothing: what goes wrong is the items' to learn.
            in_flight_max: batches of one lane under way before items begin to queue.
            weight_max: the most that one batch weighs.
        """
        self._begin = begin
        self._in_flight_max = in_flight_max
        self._weight_max = weight_max
        self._lanes: dict[K, Lane[T]] = {}
        self._wakes: dict[K, asyncio.TimerHandle] = {}
        self._under_way: dict[asyncio.Future[None], list[T]] = {}
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
        for batch in under_way:
            batch.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        return waiting + [item for items in under_way.values() for item in items]

    def _pump(self, key: K, lane: Lane[T]) -> None:
        """Lets every batch leave that may leave now."""
        if self._closed:
            return
        while lane.queue and (taken := lane.take(time.monotonic())) is not None:
            number, items = taken
            batch = self._begin(key, items)
            self._under_way[batch] = items
            batch.add_done_callback(partial(self._ended, key, lane, number))
        wake = self._wakes.pop(key, None)
        if wake is not None:
            wake.cancel()
        if not lane.queue:
            if lane.idle:
                self._lanes.pop(key, None)
        elif (wake_s := lane.wake_s(time.monotonic())) is not None:
            loop = asyncio.get_running_loop()
            self._wakes[key] = loop.call_later(max(0.0, wake_s - time.monotonic()), self._pump, key, lane)

    def _ended(self, key: K, lane: Lane[T], number: int, batch: asyncio.Future[None]) -> None:
        del self._under_way[batch]
        lane.finished(number)
        self._pump(key, lane)
