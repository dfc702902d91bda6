"""Throttling: nobody is held back who is not refused; who is, asks little more than what is taken; and it ends at once."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet.throttle import CLIENT_CREDIT, DOOR_CREDIT, HEADROOM, KEYS_KEPT, MEMORY_S, Throttles

TIMES = st.lists(st.floats(0, 1e4), max_size=200).map(sorted)


@given(times=TIMES, drawn=st.floats(0, 1, exclude_max=True))
def test_who_is_not_refused_is_never_held_back(times: list[float], drawn: float) -> None:
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    assert not any(throttles.holds_back("a", now_s, drawn) for now_s in times)
    assert not throttles.refused_lately, "and nothing is kept of him"


@given(
    calls=st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 1, exclude_max=True), st.booleans()), max_size=200),
    later_s=st.floats(1.01 * MEMORY_S, 1e3),
)
def test_a_moment_after_the_last_refusal_all_is_forgotten(
    calls: list[tuple[float, float, bool]], later_s: float
) -> None:
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    now_s = refused_s = 0.0
    for pause_s, drawn, refused in calls:
        now_s += pause_s
        if not throttles.holds_back("a", now_s, drawn) and refused:
            throttles.refused("a", now_s)
            refused_s = now_s
    now_s = max(now_s, refused_s + later_s)
    assert not any(throttles.holds_back("a", now_s + pause_s, 0.0) for pause_s, _, _ in calls)


@pytest.mark.parametrize("credit", [CLIENT_CREDIT, DOOR_CREDIT])
@pytest.mark.parametrize("factor", [3, 5, 10])
def test_a_crowd_asks_little_more_than_what_is_taken_and_all_of_that_is_still_taken(credit: float, factor: int) -> None:
    """A server that takes 100 calls a second, and lets a few wait, is asked for many times as many, for ten seconds."""
    throttles: Throttles[str] = Throttles(credit)
    chance = random.Random(1)
    capacity, seconds, waiting = 100, 10, 20.0
    room, asked, taken = waiting, 0, 0
    for number in range(capacity * factor * seconds):
        now_s = number / (capacity * factor)
        room = min(waiting, room + 1 / factor)
        if throttles.holds_back("a", now_s, chance.random()):
            continue
        asked += 1
        if room >= 1.0:
            room -= 1.0
            taken += 1
        else:
            throttles.refused("a", now_s)
    assert taken >= 0.95 * capacity * seconds
    assert asked <= 1.1 * HEADROOM * capacity * seconds + 6 * credit


@pytest.mark.parametrize("factor", [3, 5])
def test_a_queue_that_takes_nothing_for_a_while_and_then_all_stays_busy(factor: int) -> None:
    """As `punctuality` does: full, it refuses until half of it is gone. What is held back meanwhile must not let it run dry."""
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    chance = random.Random(1)
    capacity, seconds, queue = 100, 10, 50
    waiting, full, done = 0.0, False, 0.0
    for number in range(capacity * factor * seconds):
        now_s = number / (capacity * factor)
        done += min(waiting, 1 / factor)
        waiting -= min(waiting, 1 / factor)
        if throttles.holds_back("a", now_s, chance.random()):
            continue
        full = waiting >= queue or (full and waiting > queue / 2)
        if full:
            throttles.refused("a", now_s)
        else:
            waiting += 1
    assert done >= 0.95 * capacity * seconds


def refused(throttles: Throttles[str], key: str, times: int) -> None:
    """So many calls at one moment, of which each that is asked is refused."""
    throttles.refused(key, 0.0)
    for _ in range(times):
        if not throttles.holds_back(key, 0.0, 0.0):
            throttles.refused(key, 0.0)


def test_a_few_refusals_hold_nobody_back() -> None:
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    refused(throttles, "a", int(CLIENT_CREDIT) // 2)
    assert not throttles.holds_back("a", 0.0, 0.0)


def test_who_is_refused_all_the_time_goes_on_asking_now_and_then() -> None:
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    throttles.refused("a", 0.0)
    chance = random.Random(1)
    asked = []
    for number in range(20_000):
        now_s = number / 1000
        if not throttles.holds_back("a", now_s, chance.random()):
            asked.append(now_s)
            throttles.refused("a", now_s)
    assert len(asked) < 10_000
    assert max(later - before for before, later in itertools.pairwise(asked)) <= 1.1 * MEMORY_S


def test_what_is_not_refused_does_not_suffer_from_what_is() -> None:
    throttles: Throttles[str] = Throttles(CLIENT_CREDIT)
    refused(throttles, "a", 2 * int(CLIENT_CREDIT))
    assert throttles.holds_back("a", 0.0, 0.0)
    assert not throttles.holds_back("b", 0.0, 0.0)


def test_what_is_over_takes_no_room() -> None:
    throttles: Throttles[int] = Throttles(CLIENT_CREDIT)
    for number in range(10 * KEYS_KEPT):
        throttles.refused(number, float(number))
    assert len(throttles.refused_lately) <= KEYS_KEPT
    throttles.forget(11.0 * KEYS_KEPT)
    assert not throttles.refused_lately
