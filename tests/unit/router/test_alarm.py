"""One timer for many deadlines."""

from __future__ import annotations

import asyncio
import time

from router.alarm import Alarm


async def test_it_rings_when_the_earliest_has_come_and_then_for_the_next() -> None:
    now_s = time.monotonic()
    deadlines = [now_s + 0.03, now_s + 0.01, now_s + 0.02]
    rung: list[float] = []
    whole = asyncio.Event()

    def ring(at_s: float) -> float:
        rung.append(at_s)
        left = [deadline for deadline in deadlines if deadline > at_s]
        if not left:
            whole.set()
        return min(left, default=float("inf"))

    alarm = Alarm(ring)
    for deadline in deadlines:
        alarm.by(deadline)
    await whole.wait()
    assert rung == sorted(rung)
    assert rung[-1] >= max(deadlines)
    whole.clear()
    alarm.by(now_s)  # in the past: at once
    await whole.wait()


async def test_who_is_later_than_the_earliest_costs_no_timer() -> None:
    loop = asyncio.get_running_loop()
    alarm = Alarm(lambda _: float("inf"))
    far_s = time.monotonic() + 600.0
    alarm.by(far_s)
    timers = len(loop._scheduled)  # type: ignore[attr-defined]
    for later in range(100):
        alarm.by(far_s + later)
    assert len(loop._scheduled) == timers  # type: ignore[attr-defined]
    alarm.stop()
