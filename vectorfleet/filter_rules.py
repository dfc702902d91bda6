"""A search's filter, checked: it says something at every place, and is within the limits.

Pure. Every refusal is an `InvalidRequest` (INVALID_FILTER) that names the place, for example
`filter.all_of.filters[1].field.range.gt`. Routers check so that callers hear of it, nodes so that nothing else gets in.
"""

from __future__ import annotations

import math
from typing import NoReturn

from vectorfleet import limits
from vectorfleet.errors import InvalidRequest
from vectorfleet.v1 import types_pb2


def check(wanted: types_pb2.Filter, field: str = "filter") -> None:
    """Refuses a filter that says nothing at some place, or is beyond a limit."""
    size = wanted.ByteSize()
    if size > limits.FILTER_BYTES_MAX:
        _refuse(field, f"a filter has at most {limits.FILTER_BYTES_MAX} bytes; this one has {size}")
    walk = _Check()
    walk.filter(wanted, field, 1)
    if walk.conditions > limits.FILTER_CONDITIONS_MAX:
        _refuse(
            field, f"a filter has at most {limits.FILTER_CONDITIONS_MAX} conditions; this one has {walk.conditions}"
        )
    if walk.values > limits.FILTER_VALUES_MAX:
        _refuse(field, f"a filter has at most {limits.FILTER_VALUES_MAX} values; this one has {walk.values}")


class _Check:
    """Walks a filter, and counts."""

    def __init__(self) -> None:
        self.conditions = 0
        self.values = 0

    def filter(self, wanted: types_pb2.Filter, field: str, depth: int) -> None:
        form = wanted.WhichOneof("form")
        if form is None:
            _refuse(field, "one of field, all_of, any_of and none_of is required")
        if form == "field":
            self.conditions += 1
            self._field(wanted.field, f"{field}.field")
            return
        if depth == limits.FILTER_DEPTH_MAX:
            _refuse(f"{field}.{form}", f"a filter is at most {limits.FILTER_DEPTH_MAX} deep")
        inner = getattr(wanted, form).filters
        if not inner:
            _refuse(f"{field}.{form}.filters", "at least one filter is required")
        for position, one in enumerate(inner):
            self.filter(one, f"{field}.{form}.filters[{position}]", depth + 1)

    def _field(self, wanted: types_pb2.FieldFilter, field: str) -> None:
        size = len(wanted.path.encode())
        if not 1 <= size <= limits.FILTER_PATH_BYTES_MAX:
            _refuse(f"{field}.path", f"a path is 1 to {limits.FILTER_PATH_BYTES_MAX} bytes; this one has {size}")
        test = wanted.WhichOneof("test")
        if test is None:
            _refuse(field, "one of equals, range and exists is required")
        if test == "equals":
            if not wanted.equals.values:
                _refuse(f"{field}.equals.values", "at least one value is required")
            self.values += len(wanted.equals.values)
            for position, value in enumerate(wanted.equals.values):
                _value(value, f"{field}.equals.values[{position}]")
        elif test == "range":
            _range(wanted.range, f"{field}.range")


def _range(bounds: types_pb2.FilterRange, field: str) -> None:
    given = {descriptor.name: value for descriptor, value in bounds.ListFields()}
    if not given:
        _refuse(field, "at least one of gt, gte, lt and lte is required")
    for one, other in (("gt", "gte"), ("lt", "lte")):
        if one in given and other in given:
            _refuse(f"{field}.{other}", f"{one} and {other} exclude each other")
    for name, value in given.items():
        if value.WhichOneof("value") not in ("int_value", "double_value"):
            _refuse(f"{field}.{name}", "a bound is a number: int_value or double_value")
        _value(value, f"{field}.{name}")


def _value(value: types_pb2.FilterValue, field: str) -> None:
    form = value.WhichOneof("value")
    if form is None:
        _refuse(field, "one of string_value, int_value, double_value, bool_value and null_value is required")
    if form == "double_value" and not math.isfinite(value.double_value):
        _refuse(f"{field}.double_value", f"{value.double_value} is no JSON number")
    if form == "null_value" and not value.null_value:
        _refuse(f"{field}.null_value", "null_value can only be true")


def _refuse(field: str, message: str) -> NoReturn:
    raise InvalidRequest(message, reason="INVALID_FILTER", field=field)
