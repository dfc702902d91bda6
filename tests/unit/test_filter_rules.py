"""filters: what is let through, and each thing that is refused, with its place."""

from __future__ import annotations

from typing import Any

import pytest

from vectorfleet import filter_rules, limits
from vectorfleet.errors import InvalidRequest
from vectorfleet.v1 import types_pb2


def field(path: str = "a", **test: Any) -> dict[str, Any]:
    return {"field": {"path": path, **(test or {"exists": True})}}


def equals(*values: dict[str, Any]) -> dict[str, Any]:
    return field(equals={"values": list(values)})


def group(form: str, *inner: dict[str, Any]) -> dict[str, Any]:
    return {form: {"filters": list(inner)}}


def nested(depth: int) -> dict[str, Any]:
    return field() if depth == 1 else group("all_of", nested(depth - 1))


ONE = {"int_value": 1}


@pytest.mark.parametrize(
    "wanted",
    [
        equals(ONE, {"string_value": ""}, {"bool_value": False}, {"null_value": True}, {"double_value": 0.5}),
        field(range={"gt": ONE, "lte": {"double_value": 2.5}}),
        field(range={"gte": {"int_value": 5}, "lt": ONE}),
        field(exists=False),
        group("none_of", group("any_of", field("ä.b"), equals(ONE)), field()),
        nested(limits.FILTER_DEPTH_MAX),
        group("any_of", *[field()] * limits.FILTER_CONDITIONS_MAX),
        equals(*[ONE] * limits.FILTER_VALUES_MAX),
        field("x" * limits.FILTER_PATH_BYTES_MAX),
    ],
)
def test_a_valid_filter_is_let_through(wanted: dict[str, Any]) -> None:
    filter_rules.check(types_pb2.Filter(**wanted))


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ({}, ""),
        (group("all_of"), ".all_of.filters"),
        (group("any_of", field(), {}), ".any_of.filters[1]"),
        (group("none_of", group("all_of", field(path=""))), ".none_of.filters[0].all_of.filters[0].field.path"),
        (field("ä" * (limits.FILTER_PATH_BYTES_MAX // 2) + "x"), ".field.path"),
        ({"field": {"path": "a"}}, ".field"),
        (field(equals={}), ".field.equals.values"),
        (equals(ONE, {}), ".field.equals.values[1]"),
        (equals({"double_value": float("nan")}), ".field.equals.values[0].double_value"),
        (equals({"null_value": False}), ".field.equals.values[0].null_value"),
        (field(range={}), ".field.range"),
        (field(range={"gt": ONE, "gte": ONE}), ".field.range.gte"),
        (field(range={"lt": ONE, "lte": ONE}), ".field.range.lte"),
        (field(range={"gte": {"string_value": "a"}}), ".field.range.gte"),
        (field(range={"gte": {}}), ".field.range.gte"),
        (field(range={"lt": {"double_value": float("inf")}}), ".field.range.lt.double_value"),
        (nested(limits.FILTER_DEPTH_MAX + 1), ".all_of.filters[0]" * (limits.FILTER_DEPTH_MAX - 1) + ".all_of"),
        (group("any_of", *[field()] * (limits.FILTER_CONDITIONS_MAX + 1)), ""),
        (equals(*[ONE] * (limits.FILTER_VALUES_MAX + 1)), ""),
        (equals({"string_value": "x" * limits.FILTER_BYTES_MAX}), ""),
    ],
)
def test_a_bad_filter_is_refused_with_its_place(wanted: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        filter_rules.check(types_pb2.Filter(**wanted))
    assert (caught.value.reason, caught.value.field) == ("INVALID_FILTER", f"filter{place}")
    assert caught.value.message
