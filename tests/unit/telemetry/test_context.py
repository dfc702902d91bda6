"""What strangers send along with a call, and what is made of it."""

from __future__ import annotations

import pytest

from vectorfleet.telemetry.context import RequestIds, TraceContext, read

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_request_id_and_a_trace_context_are_read() -> None:
    came = read([("user-agent", "x"), ("x-request-id", "job-7/a"), ("traceparent", PARENT), ("tracestate", "a=1")])
    assert came.request_id == "job-7/a"
    assert came.parent == TraceContext(TRACE, SPAN, sampled=True, state="a=1")


def test_a_context_travels_on_as_it_came() -> None:
    came = read([("traceparent", f"00-{TRACE}-{SPAN}-00"), ("tracestate", "a=1"), ("tracestate", "b=2")])
    assert came.parent is not None
    assert came.parent.headers == (("traceparent", f"00-{TRACE}-{SPAN}-00"), ("tracestate", "a=1,b=2"))


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\nb", "a\x1b[2J", "ä", "x" * 129, '"', "<script>", "${jndi}", b"binary"],
    ids=repr,
)
def test_a_request_id_that_could_harm_a_log_is_as_good_as_none(value: str | bytes) -> None:
    assert read([("x-request-id", value)]).request_id == ""


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT + "-more",  # version 00 has no more fields
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        "٠" * 55,
        "0" * 1_000_000,
    ],
    ids=lambda value: repr(value[:60]),
)
def test_a_trace_context_of_another_form_is_as_good_as_none(value: str) -> None:
    assert read([("traceparent", value)]).parent is None


def test_two_parents_are_none() -> None:
    assert read([("traceparent", PARENT), ("traceparent", PARENT)]).parent is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    came = read([("traceparent", f"01-{TRACE}-{SPAN}-03-later")])
    assert came.parent == TraceContext(TRACE, SPAN, sampled=True)


@pytest.mark.parametrize("state", ["a=\n1", "x" * 513, "ä=1"])
def test_a_state_that_is_unsound_costs_itself_alone(state: str) -> None:
    assert read([("traceparent", PARENT), ("tracestate", state)]).parent == TraceContext(TRACE, SPAN, sampled=True)


def test_made_ids_differ_and_are_sane() -> None:
    made = [maker.make() for maker in (RequestIds(), RequestIds()) for _ in range(100)]
    assert len(set(made)) == 200
    assert [read([("x-request-id", one)]).request_id for one in made] == made
