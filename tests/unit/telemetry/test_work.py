"""The tree of what was done for a call."""

from __future__ import annotations

import asyncio

import pytest

from vectorfleet.errors import Unavailable
from vectorfleet.telemetry import work
from vectorfleet.telemetry.work import PARTS_MAX, STAGES_MAX, Work, current, current_or_none, outgoing, shared


def test_stages_follow_one_another_without_a_gap() -> None:
    one = Work("call", "r")
    one.lap("first")
    one.lap("second")
    one.end()
    (_, a, b), (_, c, d) = one.stages
    assert one.begun_ns == a <= b == c <= d <= one.ended_ns


def test_laps_of_one_stage_in_a_row_are_one_and_add_up_otherwise() -> None:
    one = Work("call")
    for stage in ("scan", "scan", "rank", "scan"):
        one.lap(stage)
    assert [stage for stage, _, _ in one.stages] == ["scan", "rank", "scan"]
    assert one.spent_s["scan"] == pytest.approx(sum(b - a for s, a, b in one.stages if s == "scan") / 1e9)


def test_time_that_was_skipped_is_no_stage() -> None:
    one = Work("call")
    one.lap("before")
    one.skip()
    one.lap("after")
    assert one.stages[0][2] <= one.stages[1][1]


def test_whatever_a_stream_does_stays_bounded() -> None:
    one = Work("stream")
    for number in range(3 * max(STAGES_MAX, PARTS_MAX)):
        one.lap(str(number))
        one.part("call").end()
        shared("batch", [one])
    assert (len(one.stages), len(one.parts)) == (STAGES_MAX, PARTS_MAX)


def test_a_work_ends_once_and_with_the_reason_of_what_was_raised() -> None:
    for error, reason in (
        (Unavailable("away"), "SHARD_UNAVAILABLE"),
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (KeyError(), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
    ):
        one = Work("call")
        with pytest.raises(type(error)), one:
            raise error
        ended_ns = one.ended_ns
        one.end("LATER")
        assert (one.error, one.ended_ns) == (reason, ended_ns)
    assert current_or_none() is None


async def test_a_task_belongs_to_the_work_that_started_it() -> None:
    assert outgoing() is None
    with Work("call", "r-1", (("traceparent", "p"),)) as one:
        seen = await asyncio.create_task(_seen())
    assert seen == (one, (("x-request-id", "r-1"), ("traceparent", "p")))
    assert current() is not one


async def _seen() -> tuple[Work, work.Metadata | None]:
    return current(), outgoing()


def test_what_is_shared_is_a_part_of_each() -> None:
    works = [Work("call", "a"), Work("call", "b")]
    batch = shared("batch", works)
    assert [one.parts for one in works] == [[batch], [batch]]
    assert batch.request_id == "a"
    assert batch.facts == {"calls": 2}


def test_a_work_is_told_with_its_parts() -> None:
    one = Work("Search", "r")
    one.facts.update(collection="films", k=10)
    one.lap("validate")
    part = one.part("node")
    part.facts["node"] = "node-1"
    part.end("DEADLINE_EXCEEDED")
    one.end()
    told = one.told()
    assert (told["what"], told["collection"], told["k"]) == ("Search", "films", 10)
    assert list(told["stages_ms"]) == ["validate"]
    assert told["parts"] == [
        {"what": "node", "ms": told["parts"][0]["ms"], "node": "node-1", "error": "DEADLINE_EXCEEDED"}
    ]
    assert 0 <= told["parts"][0]["ms"] <= told["ms"]
