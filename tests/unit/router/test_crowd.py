"""The crowd before a door: many connections that each ask seldom are throttled together; who is not refused is left alone."""

from __future__ import annotations

import random

import pytest

from router.crowd import MEMBER_S, Crowds
from vectorfleet.throttle import DOOR_CREDIT, HEADROOM, MEMORY_S

SEARCH, GET = "/Search", "/Get"


@pytest.mark.parametrize("connections", [1, 4, 128])
def test_of_a_crowd_little_more_is_let_in_than_is_taken_and_all_of_that_is_still_taken(connections: int) -> None:
    """A server that takes 100 calls a second, and lets a few wait, is asked for five times as many, for ten seconds."""
    crowds, chance = Crowds(), random.Random(1)
    capacity, factor, seconds = 100, 5, 10
    room, let_in, taken = 20.0, 0, 0
    for number in range(capacity * factor * seconds):
        now_s = number / (capacity * factor)
        room = min(20.0, room + 1 / factor)
        peer = str(chance.randrange(connections))
        if crowds.turns_away(peer, SEARCH, now_s, chance.random()):
            continue
        let_in += 1
        if room >= 1.0:
            room -= 1.0
            taken += 1
        else:
            crowds.refused(peer, SEARCH, now_s)
    assert taken >= 0.95 * capacity * seconds
    assert let_in <= 1.1 * HEADROOM * capacity * seconds + 6 * DOOR_CREDIT + connections
    later_s = seconds + MEMORY_S
    assert not any(crowds.turns_away(str(peer), SEARCH, later_s, 0.0) for peer in range(connections)), "it ends at once"
    crowds.forget(later_s)
    assert not crowds.members


def refuse(crowds: Crowds, peer: str, method: str, times: int, now_s: float) -> None:
    """So many calls at one moment, of which each that is let in is refused."""
    for _ in range(times):
        if not crowds.turns_away(peer, method, now_s, 0.0):
            crowds.refused(peer, method, now_s)


def test_who_is_not_refused_belongs_to_no_crowd() -> None:
    crowds = Crowds()
    refuse(crowds, "flood", SEARCH, 500, 0.0)
    assert crowds.turns_away("flood", SEARCH, 0.0, 0.0)
    assert not crowds.turns_away("other", SEARCH, 0.0, 0.0)
    assert not crowds.turns_away("flood", GET, 0.0, 0.0)


def test_who_has_not_been_refused_for_a_while_has_left_the_crowd() -> None:
    crowds = Crowds()
    refuse(crowds, "once", SEARCH, 1, 0.0)
    now_s = 0.0
    while now_s < MEMBER_S:
        refuse(crowds, "flood", SEARCH, 500, now_s)
        assert crowds.turns_away("once", SEARCH, now_s, 0.0)
        now_s += MEMORY_S / 2
    refuse(crowds, "flood", SEARCH, 500, now_s)
    assert not crowds.turns_away("once", SEARCH, now_s, 0.0)
    crowds.forget(now_s)
    assert list(crowds.members) == [("flood", SEARCH)]


def test_newcomers_first_refusals_do_not_count_against_the_crowd() -> None:
    """They were not counted as asked: else a thousand connections, refused once each, would have nobody let in."""
    crowds = Crowds()
    for peer in range(1000):
        refuse(crowds, str(peer), SEARCH, 1, 0.0)
    assert not crowds.turns_away("0", SEARCH, 0.0, 0.0)
