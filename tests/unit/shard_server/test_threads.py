"""Thread pools: bounded, punctual, and without work for callers who have left."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest

from shard_server.threads import Gate, WorkPool
from tests.unit.shard_server.fake_replica import TIMEOUT_S, until
from vectorfleet.errors import DeadlineExceeded, ResourceExhausted


@pytest.fixture
def busy() -> Iterator[threading.Event]:
    """Holds threads up until it is set."""
    event = threading.Event()
    yield event
    event.set()


async def filled(pool: WorkPool, busy: threading.Event, calls: int) -> list[asyncio.Task[bool]]:
    tasks = [asyncio.create_task(pool.run(busy.wait, TIMEOUT_S)) for _ in range(calls)]
    await asyncio.sleep(0)
    return tasks


async def test_a_call_beyond_the_bound_is_refused(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=2)
    tasks = await filled(pool, busy, 1 + 1 + 2)  # one runs, one is handed over ahead, two wait
    with pytest.raises(ResourceExhausted) as caught:
        await pool.run(int)
    assert caught.value.reason == "OVERLOADED"
    busy.set()
    assert all(await asyncio.gather(*tasks))
    assert await pool.run(int) == 0
    pool.close()


async def test_a_call_that_would_begin_too_late_is_refused_at_once(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=100)
    pace = 0.02
    await pool.run(threading.Event().wait, pace)
    tasks = await filled(pool, busy, 1 + 1 + 50)

    async def ask(patience_s: float) -> bool:
        return await pool.run_until(time.monotonic() + patience_s, busy.wait, TIMEOUT_S)

    impatient = [asyncio.create_task(ask(10 * pace))]
    while not impatient[-1].done():  # a burst is let in; then it ends
        impatient.append(asyncio.create_task(ask(10 * pace)))
        await asyncio.wait(impatient[-1:], timeout=pace)
    with pytest.raises(ResourceExhausted) as caught:
        await impatient[-1]
    assert caught.value.reason == "OVERLOADED"
    patient = asyncio.create_task(ask(TIMEOUT_S))
    await asyncio.sleep(0)
    busy.set()
    assert all(await asyncio.gather(*tasks, patient))
    await asyncio.gather(*impatient, return_exceptions=True)
    pool.close()


async def test_a_pool_says_whether_a_thread_works(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=2)
    assert pool.idle
    started = threading.Event()
    task = asyncio.create_task(pool.run(lambda: (started.set(), busy.wait(TIMEOUT_S))))
    await asyncio.to_thread(started.wait, TIMEOUT_S)
    pool.close()
    assert not pool.idle, "a process that waits for this thread at its end may wait long"
    busy.set()
    await task
    assert pool.idle


async def test_work_whose_time_is_up_never_starts(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=10)
    tasks = await filled(pool, busy, 1)
    started: list[str] = []
    soon = time.monotonic() + 0.05
    ahead = asyncio.create_task(pool.run_until(soon, started.append, "handed over ahead"))
    waiting = asyncio.create_task(pool.run_until(soon, started.append, "waiting"))
    with pytest.raises(DeadlineExceeded):
        await waiting
    busy.set()
    with pytest.raises(DeadlineExceeded):
        await ahead
    await asyncio.gather(*tasks)
    assert started == []
    pool.close()


async def test_work_whose_caller_left_never_starts_and_makes_room(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=1)
    tasks = await filled(pool, busy, 1)
    started: list[str] = []
    left = [asyncio.create_task(pool.run(started.append, name)) for name in ("ahead", "waiting")]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.wait(left)
    later = asyncio.create_task(pool.run(started.append, "later"))
    await asyncio.sleep(0)
    busy.set()
    await asyncio.gather(*tasks, later)
    assert started == ["later"]
    pool.close()


async def test_a_call_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkPool("test", threads=1, waiting_max=1)
    woken: list[object] = []
    loop = asyncio.get_running_loop()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *what: woken.append(what) or wake(*what))
    tasks = len(asyncio.all_tasks())
    working = asyncio.ensure_future(pool.run_until(time.monotonic() + TIMEOUT_S, lambda: len(asyncio.all_tasks(loop))))
    assert await working == tasks + 1, "no task beyond the caller's"
    assert len(woken) == 1
    pool.close()


async def test_a_call_whose_time_is_up_is_answered_while_its_thread_goes_on(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=1)
    started = threading.Event()
    with pytest.raises(DeadlineExceeded, match="during the work"):
        await pool.run_until(time.monotonic() + 0.05, lambda: (started.set(), busy.wait(TIMEOUT_S)))
    assert started.is_set()
    assert not pool.idle
    busy.set()
    await until(lambda: pool.idle, "the thread is done")
    pool.close()


async def test_a_closed_pool_drops_what_has_not_started_and_takes_no_more(busy: threading.Event) -> None:
    pool = WorkPool("test", threads=1, waiting_max=2)
    started = threading.Event()
    running = asyncio.create_task(pool.run(lambda: (started.set(), busy.wait(TIMEOUT_S))))
    await asyncio.to_thread(started.wait, TIMEOUT_S)
    tasks = await filled(pool, busy, 1 + 2)
    pool.close()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(int)
    busy.set()
    await running
    assert pool.idle


async def test_background_threads_yield_to_others() -> None:
    pool = WorkPool("test", threads=1, waiting_max=1, nice=3)
    there = await pool.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert there == os.getpriority(os.PRIO_PROCESS, 0) + 3 or there == 3
    pool.close()


async def test_a_gate_shuts_after_the_last_has_left() -> None:
    gate = Gate()
    assert gate.enter()
    assert not gate.shut(0.01)
    assert not gate.enter(), "it is shut for newcomers"
    shutting = asyncio.create_task(asyncio.to_thread(gate.shut, TIMEOUT_S))
    await asyncio.sleep(0)
    gate.leave()
    assert await shutting
    await until(shutting.done, "shut")


async def test_threads_that_could_not_be_started_cost_nothing_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = WorkPool("work", threads=2, waiting_max=4)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", none_left)
        for _ in range(5):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await pool.run(int)
    assert pool.idle
    assert await pool.run(int) == 0
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", none_left)
        assert await asyncio.gather(pool.run(int), pool.run(int)) == [0, 0], "the one that there is does the work"
    pool.close()
