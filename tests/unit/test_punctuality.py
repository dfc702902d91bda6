"""Admission by time: nobody is refused who would be in time, a burst passes, an overload does not, and it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vectorfleet.punctuality import BURST_S, Punctuality

PACE_S = 0.01
"""Of the queue below: seconds a piece of work."""


def at_work(ahead: int) -> Punctuality:
    queue = Punctuality()
    queue.enter(ahead)
    queue.came_back(0.0, 100, 100 * PACE_S)
    return queue


def test_without_a_pace_everything_is_admitted() -> None:
    queue = Punctuality()
    queue.enter(10**6)
    assert queue.admits(10**6, 1e-9, 0.0)


def test_where_nothing_is_ahead_nobody_is_refused_however_slow_work_is() -> None:
    queue = at_work(0)
    assert all(queue.admits(1000, 0.001, now_s) for now_s in (0.0, 10.0))


def test_work_that_would_be_late_is_refused_once_a_burst_is_over() -> None:
    queue = at_work(100)  # one second of work
    assert queue.admits(1, 0.5, 8.0)
    assert queue.admits(1, 0.5, 8.0 + 0.9 * BURST_S)
    assert not queue.admits(1, 0.5, 8.0 + 1.1 * BURST_S)
    assert queue.admits(1, 2.0, 8.0 + BURST_S), "who has time may wait"


def test_refusing_goes_on_while_the_queue_is_at_its_limit_and_ends_when_half_of_the_time_would_do() -> None:
    queue = at_work(100)
    queue.admits(1, 0.5, 0.0)
    assert not queue.admits(1, 0.5, 1.0)
    queue.leave(80)  # what is left takes 0.2 of the 0.25 s that may pass: in time, but no sign of an end
    assert queue.admits(1, 0.5, 1.1)
    queue.enter(80)
    assert not queue.admits(1, 0.5, 1.2), "no burst begins here"
    queue.leave(90)
    assert queue.admits(1, 0.5, 1.3)
    queue.enter(90)
    assert queue.admits(1, 0.5, 1.4), "a new burst"


def test_the_pace_is_that_of_all_side_by_side() -> None:
    queue = Punctuality()
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
    queue, waiting, now_s, served_s = Punctuality(), [], 0.0, 0.0
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
