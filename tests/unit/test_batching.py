"""The batching policy: no waiting when idle, together when busy, nobody behind a slow batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vectorfleet.batching import PATIENCE_S, Lane


def taken(lane: Lane[str], now_s: float) -> list[list[str]]:
    batches = []
    while (batch := lane.take(now_s)) is not None:
        batches.append(batch[1])
    return batches


def test_an_idle_lane_lets_a_search_leave_at_once() -> None:
    lane: Lane[str] = Lane(1, 100)
    lane.put("a", 1)
    assert taken(lane, 0.0) == [["a"]]


def test_searches_wait_for_the_batch_under_way_and_leave_together() -> None:
    lane: Lane[str] = Lane(1, 100)
    lane.put("a", 1)
    first = lane.take(0.0)
    assert first is not None
    for item in "bcd":
        lane.put(item, 1)
        assert taken(lane, 0.01) == []
    lane.finished(first[0])
    assert taken(lane, 0.02) == [["b", "c", "d"]]


def test_a_batch_is_bounded_and_one_large_search_is_not_split() -> None:
    lane: Lane[str] = Lane(10, 4)
    for item, weight in (("a", 3), ("b", 1), ("c", 2), ("d", 9), ("e", 4)):
        lane.put(item, weight)
    assert taken(lane, 0.0) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_slow_batch_holds_its_place_for_a_while_only() -> None:
    lane: Lane[str] = Lane(1, 100)
    lane.put("a", 1)
    assert taken(lane, 0.0) == [["a"]]
    assert lane.wake_s(0.0) is None
    lane.put("b", 1)
    assert lane.wake_s(0.01) == PATIENCE_S
    assert taken(lane, PATIENCE_S * 0.9) == []
    assert taken(lane, PATIENCE_S) == [["b"]]
    assert not lane.idle


def test_batches_share_evenly_so_that_nobody_goes_on_alone() -> None:
    lane: Lane[int] = Lane(2, 100)
    lane.put(0, 1)
    alone = lane.take(0.0)
    assert alone is not None
    for item in range(1, 64):
        lane.put(item, 1)
    (first,) = taken(lane, 0.0)
    assert first == list(range(1, 33))
    lane.finished(alone[0])
    lane.put(0, 1)
    (second,) = taken(lane, 0.01)
    assert second == [*range(33, 64), 0]


def test_few_are_not_split() -> None:
    lane: Lane[int] = Lane(2, 100)
    lane.put(0, 1)
    assert taken(lane, 0.0) == [[0]]
    for item in range(1, 9):
        lane.put(item, 1)
    assert taken(lane, 0.0) == [list(range(1, 9))]


@given(st.lists(st.tuples(st.sampled_from(["put", "finish", "wait"]), st.integers(1, 6))), st.integers(1, 3))
def test_everything_leaves_once_in_order_within_bounds(events: list[tuple[str, int]], in_flight_max: int) -> None:
    lane: Lane[int] = Lane(in_flight_max, 5)
    now_s, put, left, under_way = 0.0, 0, [], []
    weights: dict[int, int] = {}
    for event, number in [*events, *[("finish", 1)] * (2 * len(events) + 2)]:
        if event == "put":
            lane.put(put, number)
            weights[put] = number
            put += 1
        elif event == "finish" and under_way:
            lane.finished(under_way.pop(0))
        elif event == "wait":
            now_s += PATIENCE_S * number / 4
        while (batch := lane.take(now_s)) is not None:
            under_way.append(batch[0])
            left += batch[1]
            assert len(batch[1]) == 1 or sum(weights[item] for item in batch[1]) <= 5
        if lane.queue:
            wake_s = lane.wake_s(now_s)
            assert wake_s is not None
            assert now_s < wake_s <= now_s + PATIENCE_S + 1e-9
    assert left == list(range(put))
    assert lane.idle


def test_who_carries_for_all_is_among_them() -> None:
    lane: Lane[int] = Lane(2, 100, 100)
    lane.put(0, 1)
    assert taken(lane, 0.0) == [[0]]
    for item in range(1, 41):
        lane.put(item, 1)
    assert taken(lane, 0.0) == [list(range(1, 41))], "a thread that asks for others would not come back for itself"
