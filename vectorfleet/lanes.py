"""Natural batching on an event loop: lanes of what may travel together, the batches under way, and the clock.

The policy is `batching.Lane`'s.

Invariants: every item is handed to `begin` in one batch, or comes back from `close`, or both; a lane
without work takes no memory; no batch outlives `close`. An item that entered by itself is its owner's alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from vectorfleet.batching import Lane

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Place: TypeAlias = tuple[K, Lane[T], int]
"""Of an item that left by itself."""


class Lanes(Generic[K, T]):
    """Lanes by key. Belongs to one event loop."""

    def __init__(
        self,
        begin: Callable[[K, list[T]], asyncio.Future[None]],
        *,
        in_flight_max: int,
        weight_max: int,
        gathering: bool = False,
    ) -> None:
        """Makes no lane yet.

        Args:
            begin: sends one batch on its way; what it returns is done when the batch has come to its end, and ends the batch
                where it is cancelled. It raises nothing: what goes wrong is the items' to learn.
            in_flight_max: batches of one lane under way before items begin to queue.
            weight_max: the most that one batch weighs.
            gathering: True: while a lane is busy, items of one turn of the loop leave together, after it. For items of tasks
                that a batch woke together and that put again.
        """
        self._begin = begin
        self._gathering = gathering
        self._gathered: set[K] = set()
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
        self._pump_soon(key, lane)

    def enter(self, key: K) -> Place[K, T] | None:
        """Lets an item leave at once and by itself, without a task, where nothing else of its lane is in hand.

        Returns:
            what to give to `leave` when it is back; None: it has to be `put`.
        """
        if key in self._lanes or self._closed:
            return None
        lane = self._lanes[key] = Lane(self._in_flight_max, self._weight_max)
        return key, lane, lane.leave(time.monotonic())

    def leave(self, place: Place[K, T]) -> None:
        """Makes room for what waits behind an item that had entered."""
        key, lane, number = place
        lane.finished(number)
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

    def _pump_soon(self, key: K, lane: Lane[T]) -> None:
        if not self._gathering:
            self._pump(key, lane)
        elif key not in self._gathered:
            self._gathered.add(key)
            asyncio.get_running_loop().call_soon(self._turned, key, lane)

    def _turned(self, key: K, lane: Lane[T]) -> None:
        self._gathered.discard(key)
        self._pump(key, lane)

    def _woken(self, key: K, lane: Lane[T]) -> None:
        del self._wakes[key]
        self._pump(key, lane)

    def _pump(self, key: K, lane: Lane[T]) -> None:
        """Lets every batch leave that may leave now."""
        if self._closed:
            return
        while lane.queue and (taken := lane.take(time.monotonic())) is not None:
            number, items = taken
            batch = self._begin(key, items)
            self._under_way[batch] = items
            batch.add_done_callback(partial(self._ended, key, lane, number))
        if not lane.queue:
            if lane.idle:
                self._lanes.pop(key, None)
                wake = self._wakes.pop(key, None)
                if wake is not None:
                    wake.cancel()
        elif key not in self._wakes and (wake_s := lane.wake_s(time.monotonic())) is not None:
            # One that is set already wakes no later than this: the oldest batch is the first to lose its place.
            loop = asyncio.get_running_loop()
            self._wakes[key] = loop.call_later(max(0.0, wake_s - time.monotonic()), self._woken, key, lane)

    def _ended(self, key: K, lane: Lane[T], number: int, batch: asyncio.Future[None]) -> None:
        del self._under_way[batch]
        lane.finished(number)
        if lane.queue:
            self._pump_soon(key, lane)  # gathering: with what those ask next whom this batch wakes
        else:
            self._pump(key, lane)
