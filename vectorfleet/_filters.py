"""A filter as a caller writes it, a mapping in the manner of MongoDB's queries → the contract's `Filter`. Pure.

    {"lang": "en"}                                          equals
    {"lang": {"$in": ["en", "de"]}, "price": {"$lt": 10}}   all of several
    {"$or": [{"author.name": "Ada"}, {"draft": {"$exists": False}}]}

It is plain JSON, so the command line takes the same. Refuses what the contract cannot carry, naming the place as the caller wrote
it (`filter.$or[1].draft.$exists`); limits are the server's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from vectorfleet import limits
from vectorfleet._arguments import Filter, refuse
from vectorfleet.v1 import types_pb2

_BOUNDS: Final = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS: Final = ("$eq", "$ne", "$in", "$nin", *_BOUNDS, "$exists")
_GROUPS: Final = ("$and", "$or", "$nor", "$not")
_REASON: Final = "INVALID_FILTER"


def message(wanted: Filter, field: str = "filter", depth: int = 1) -> types_pb2.Filter:
    """Makes the message; raises `InvalidRequest` (INVALID_FILTER)."""
    if not isinstance(wanted, Mapping):
        refuse(field, f"a filter must be a mapping, not {type(wanted).__name__}", reason=_REASON)
    if not wanted:
        refuse(field, "the filter says nothing: leave it out to find all points", reason=_REASON)
    if depth > limits.FILTER_DEPTH_MAX:
        refuse(field, f"a filter is at most {limits.FILTER_DEPTH_MAX} deep", reason=_REASON)
    parts: list[types_pb2.Filter] = []
    for key, content in wanted.items():
        if not isinstance(key, str):
            refuse(field, f"a field's path must be a str, not {key!r}", reason=_REASON)
        if key.startswith("$"):
            parts.append(_group(key, content, f"{field}.{key}", depth))
        else:
            parts += _field(_text(key, field), content, f"{field}.{key}")
    return parts[0] if len(parts) == 1 else types_pb2.Filter(all_of=types_pb2.FilterList(filters=parts))


def _group(key: str, content: Any, field: str, depth: int) -> types_pb2.Filter:
    if key not in _GROUPS:
        refuse(field, f"there is no operator {key} here; there are {', '.join(_GROUPS)}", reason=_REASON)
    if key == "$not":
        return _none_of([message(content, field, depth + 1)])
    given = _listed(content, field)
    inner = [message(one, f"{field}[{position}]", depth + 1) for position, one in enumerate(given)]
    if key == "$nor":
        return _none_of(inner)
    together = types_pb2.FilterList(filters=inner)
    return types_pb2.Filter(all_of=together) if key == "$and" else types_pb2.Filter(any_of=together)


def _field(path: str, content: Any, field: str) -> list[types_pb2.Filter]:
    if not isinstance(content, Mapping):
        return [_equals(path, [_value(content, field)])]
    if not content:
        refuse(field, f"no operator is given; there are {', '.join(_OPERATORS)}", reason=_REASON)
    parts: list[types_pb2.Filter] = []
    bounds = types_pb2.FilterRange()
    for operator, operand in content.items():
        place = f"{field}.{operator}"
        if operator not in _OPERATORS:
            hint = f"there is no operator {operator!r}; there are {', '.join(_OPERATORS)}"
            refuse(place, hint + "; a field within a field is written 'outer.inner'", reason=_REASON)
        elif operator in _BOUNDS:
            getattr(bounds, operator[1:]).CopyFrom(_number(operand, place))
        elif operator == "$exists":
            if not isinstance(operand, bool):
                refuse(place, f"$exists is True or False, not {operand!r}", reason=_REASON)
            parts.append(types_pb2.Filter(field=types_pb2.FieldFilter(path=path, exists=operand)))
        else:
            one = operator in ("$eq", "$ne")
            given = [operand] if one else _listed(operand, place)
            values = [_value(value, place if one else f"{place}[{at}]") for at, value in enumerate(given)]
            equal = _equals(path, values)
            parts.append(equal if operator in ("$eq", "$in") else _none_of([equal]))
    if bounds.ListFields():
        parts.append(types_pb2.Filter(field=types_pb2.FieldFilter(path=path, range=bounds)))
    return parts


def _equals(path: str, values: Sequence[types_pb2.FilterValue]) -> types_pb2.Filter:
    equals = types_pb2.FilterValues(values=values)
    return types_pb2.Filter(field=types_pb2.FieldFilter(path=path, equals=equals))


def _none_of(inner: Sequence[types_pb2.Filter]) -> types_pb2.Filter:
    return types_pb2.Filter(none_of=types_pb2.FilterList(filters=inner))


def _listed(content: Any, field: str) -> list[Any]:
    if isinstance(content, str | bytes | Mapping) or not isinstance(content, Sequence | np.ndarray | set | frozenset):
        refuse(field, f"a list is needed, not {type(content).__name__}", reason=_REASON)
    if not len(content):
        refuse(field, "the list is empty", reason=_REASON)
    return list(content)


def _value(given: Any, field: str) -> types_pb2.FilterValue:
    value = given.item() if isinstance(given, np.generic) else given
    if value is None:
        return types_pb2.FilterValue(null_value=True)
    if isinstance(value, bool):
        return types_pb2.FilterValue(bool_value=value)
    if isinstance(value, str):
        return types_pb2.FilterValue(string_value=_text(value, field))
    if isinstance(value, list | tuple | set):
        refuse(field, "a list is no value: write {'$in': [...]} for any of these", reason=_REASON)
    if not isinstance(value, int | float):
        kinds = "a str, a number, True, False or None"
        refuse(field, f"a value is {kinds}, not {type(value).__name__}", reason=_REASON)
    return _number(value, field)


def _number(given: Any, field: str) -> types_pb2.FilterValue:
    value = given.item() if isinstance(given, np.generic) else given
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            refuse(field, "an integer must fit 64 bits", reason=_REASON)
        return types_pb2.FilterValue(int_value=value)
    if not isinstance(value, float):
        refuse(field, f"a number is needed, not {type(value).__name__}", reason=_REASON)
    if not np.isfinite(value):
        refuse(field, f"{value} is no JSON number", reason=_REASON)
    return types_pb2.FilterValue(double_value=value)


def _text(value: str, field: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(field, "a text is not valid Unicode", reason=_REASON)
    return value
