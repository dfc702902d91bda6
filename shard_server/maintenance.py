"""Background work on replicas: one unit at a time, in turns, so that no replica starves another.

Writers wait for sealing, which is soon done; nobody waits for merges, encodings and verification, which may take long. So
these are two lanes that know nothing of each other.

Which work there is, and when, is the engine's to say (`Replica.seal`, `Replica.improve`); a lane only keeps asking: the
replicas that were written to at once, all of them every second. A replica whose work fails is left alone for a while, longer
each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shard_server.hosted import HostedReplica
from shard_server.threads import WorkPool
from vectorfleet.errors import Unavailable

if TYPE_CHECKING:
    from shard_server.engine.replica import Replica

TICK_S: Final = 1.0
PAUSE_S: Final = 0.05
"""Between two rounds that found nothing, however many writes come."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Backoff:
    until_s: float
    delay_s: float


class Maintenance:
    """The loops that drive the engine's background work on all replicas of the node."""

    def __init__(self, replicas: Callable[[], Iterable[HostedReplica]], sealing: WorkPool, improving: WorkPool) -> None:
        """Does nothing until `run`.

        Args:
            replicas: those held at the moment of the call.
            sealing: threads for what writers may wait for.
            improving: threads for the rest.
        """
        self._lanes = (_Lane(replicas, sealing, _seal), _Lane(replicas, improving, _improve))

    def notify(self, held: HostedReplica) -> None:
        """This replica may have work."""
        for lane in self._lanes:
            lane.notify(held)

    async def run(self) -> None:
        """Works for ever."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run())


class _Lane:
    """Does one kind of work, one unit at a time."""

    def __init__(
        self,
        replicas: Callable[[], Iterable[HostedReplica]],
        pool: WorkPool,
        work: Callable[[Replica, float], bool],
    ) -> None:
        self._replicas = replicas
        self._pool = pool
        self._work = work
        self._due: set[HostedReplica] = set()
        self._wake = asyncio.Event()
        self._everyone_at_s = 0.0
        self._backoffs: dict[HostedReplica, _Backoff] = {}

    def notify(self, held: HostedReplica) -> None:
        self._due.add(held)
        self._wake.set()

    async def run(self) -> None:
        while True:
            due = self._take_due()
            busy = {held for held in due if await self._work_on(held)}
            self._due |= busy
            if not busy:
                await self._pause()

    def _take_due(self) -> set[HostedReplica]:
        now_s = time.monotonic()
        if now_s >= self._everyone_at_s:
            self._everyone_at_s = now_s + TICK_S
            self._due = set(self._replicas())
            self._backoffs = {held: backoff for held, backoff in self._backoffs.items() if held in self._due}
        due, self._due = self._due, set()
        self._wake.clear()
        return due

    async def _pause(self) -> None:
        """Waits for a replica that may have work, or for the tick; at least `PAUSE_S`."""
        await asyncio.sleep(PAUSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._everyone_at_s - time.monotonic()):
                await self._wake.wait()

    async def _work_on(self, held: HostedReplica) -> bool:
        now_s = time.monotonic()
        backoff = self._backoffs.get(held)
        if not held.serving or (backoff is not None and now_s < backoff.until_s):
            return False
        try:
            worked = await held.run(self._pool, None, self._work, now_s)
        except Unavailable:
            return False  # it is closing
        except Exception:
            delay_s = BACKOFF_FIRST_S if backoff is None else min(2 * backoff.delay_s, BACKOFF_MAX_S)
            self._backoffs[held] = _Backoff(now_s + delay_s, delay_s)
            _log.exception("background work on %s failed; next try in %.0f s", held.name, delay_s)
            return False
        self._backoffs.pop(held, None)
        return worked


def _seal(replica: Replica, now_s: float) -> bool:
    return replica.seal(now_s)


def _improve(replica: Replica, now_s: float) -> bool:
    return replica.improve(now_s)
