"""Admission by time: nobody is refused who would be in time, a burst passes, an overload does not, and it ends."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet.punctuality import ALONE_SHARE_MAX, BURST_S, CALM_S, Punctuality

PACE_S = 0.01
"""Of the queue below: seconds a piece of work."""
SHARE = 0.5


def at_work(ahead: int) -> Punctuality:
    queue = Punctuality(SHARE)
    queue.enter(ahead)
    queue.came_back(0.0, 100, 100 * PACE_S)
    return queue


def test_without_a_pace_everything_is_admitted() -> None:
    queue = Punctuality(SHARE)
    queue.enter(10**6)
    assert queue.admits(10**6, 1e-9, 0.0)


def test_where_nothing_is_ahead_all_are_admitted_who_have_twice_the_time_of_their_own_work() -> None:
    queue = at_work(0)
    enough_s = 100 * PACE_S / ALONE_SHARE_MAX
    assert all(queue.admits(100, enough_s, now_s) for now_s in (0.0, BURST_S, 10.0))
    assert not queue.strained(10.0)


def test_who_comes_too_late_even_where_nothing_is_ahead_is_tried_now_and_then() -> None:
    """Such calls have waited where nobody saw it. But were they never let in, a pace that was bad once would stay so."""
    queue = at_work(0)
    times = [0.001 * number for number in range(2000)]
    admitted = [now_s for now_s in times if queue.admits(100, PACE_S, now_s)]
    after = [now_s for now_s in admitted if now_s >= BURST_S]
    assert len(admitted) - len(after) == 100, "a burst"
    assert len(after) == 2.0 / BURST_S - 1
    assert queue.admits(1, 10.0, 2.0), "who has time is not refused"


def test_work_that_would_be_late_is_refused_once_a_burst_is_over() -> None:
    queue = at_work(100)  # one second of work
    assert queue.admits(1, 0.5, 8.0)
    assert queue.admits(1, 0.5, 8.0 + 0.9 * BURST_S)
    assert not queue.admits(1, 0.5, 8.0 + 1.1 * BURST_S)
    assert queue.admits(1, 2.5, 8.0 + 1.1 * BURST_S), "who has time may wait"


def test_refusing_ends_only_when_for_a_while_nobody_would_have_been_late() -> None:
    queue = at_work(100)
    queue.admits(1, 0.5, 0.0)
    assert not queue.admits(1, 0.5, 1.0 - 0.1 * CALM_S)
    queue.leave(90)
    assert queue.admits(1, 0.5, 1.0), "there is room at the moment"
    queue.enter(90)
    assert not queue.admits(1, 0.5, 1.1), "but no burst begins here"
    assert queue.strained(1.1)
    assert not queue.strained(1.2 + CALM_S)
    assert queue.admits(1, 0.5, 1.2 + CALM_S), "a new burst"


def test_the_pace_is_that_of_all_side_by_side() -> None:
    queue = Punctuality(SHARE)
    for batch in range(4):  # of 10 each, all begun at 0; together they take a second
        queue.came_back(0.0, 10, 0.25 * (batch + 1))
    queue.enter(40)
    assert 0.9 < queue.expected_s(0) < 1.1


def test_the_pace_follows_what_work_costs_now() -> None:
    queue = at_work(1)
    for second in range(20):
        queue.came_back(100.0 + second, 1, 101.0 + second)
    assert 0.9 < queue.expected_s(0) < 1.1


@given(st.integers(1, 4), st.floats(0.05, 10.0), st.floats(1.5, 10.0))
def test_under_any_overload_what_is_admitted_is_in_time(servers: int, patience_s: float, factor: float) -> None:
    """A queue served in order at a fixed rate, offered `factor` times as much."""
    rate = 20.0 * servers / patience_s
    queue, waiting, now_s, served_s = Punctuality(SHARE), [], 0.0, 0.0
    late = in_time = 0
    while now_s < 10 * patience_s:
        now_s += 1 / (factor * rate)
        while waiting and served_s + 1 / rate <= now_s:
            started_s = max(served_s, waiting[0])
            served_s = started_s + 1 / rate
            due_s = waiting.pop(0) + patience_s
            queue.leave(1)
            queue.came_back(started_s, 1, served_s)
            # The burst that is let in at first may be late; what came after it must not.
            if now_s > 2 * patience_s + 2 * BURST_S * factor:
                late += served_s > due_s
                in_time += served_s <= due_s
        served_s = served_s if waiting else now_s
        if queue.admits(1, patience_s, now_s):
            queue.enter(1)
            waiting.append(now_s)
    assert late <= 0.05 * (in_time + late), (late, in_time)


@pytest.mark.parametrize("slowdown", [1.0, 2.0])
@pytest.mark.parametrize(("capacity", "patience_s"), [(100.0, 1.0), (12.0, 1.0), (100.0, 0.2), (1000.0, 10.0)])
def test_an_overload_of_batches_keeps_the_server_busy_with_work_that_is_in_time(
    capacity: float, patience_s: float, slowdown: float
) -> None:
    """As a router sees it: five times too many come by chance, up to 32 travel together, batches take uneven times, and under
    the overload the server is slower than it was when its pace was learnt."""
    chance = random.Random(1)
    queue = Punctuality(0.25)
    queue.came_back(0.0, 0.5 * capacity, 0.5)
    waiting: deque[float] = deque()
    under_way: list[tuple[float, float, list[float]]] = []
    now_s = free_s = in_time = late = 0.0
    seconds = 10 * patience_s + 10

    def leave() -> None:
        nonlocal free_s
        while waiting and len(under_way) < 2:
            batch = [waiting.popleft() for _ in range(min(32, len(waiting)))]
            free_s = max(now_s, free_s) + slowdown * len(batch) / capacity * chance.uniform(0.5, 1.5)
            under_way.append((free_s, now_s, batch))

    next_s = 0.0
    while next_s < seconds:
        if under_way and under_way[0][0] <= next_s:
            now_s, started_s, batch = under_way.pop(0)
            met = sum(now_s - came_s <= 0.9 * patience_s for came_s in batch)
            queue.came_back(started_s, met, now_s)
            queue.leave(len(batch))
            in_time += met
            late += len(batch) - met
        else:
            now_s = next_s
            next_s += chance.expovariate(5 * capacity)
            if queue.admits(1, patience_s, now_s):
                queue.enter(1)
                waiting.append(now_s)
        leave()
    assert in_time >= 0.75 * seconds * capacity / slowdown
    assert late <= 0.05 * in_time + 0.5 * capacity, "those of the first burst may be"


def test_to_ask_beforehand_does_not_use_up_the_trial() -> None:
    queue = Punctuality(1 / 3)
    queue.came_back(0.0, 1, 5.0)  # five seconds each
    now_s = 10.0
    while queue.admits(1, 1.0, now_s):  # the burst
        now_s += 0.05
    now_s += BURST_S
    assert queue.admits(1, 1.0, now_s, entering=False)
    assert queue.admits(1, 1.0, now_s + 0.01)
    assert not queue.admits(1, 1.0, now_s + 0.02, entering=False)
