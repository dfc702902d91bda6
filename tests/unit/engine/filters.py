"""What a filter means, in plain Python: the truth that the engine is held against; and filters at random."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from vectorfleet.v1 import types_pb2


def passes(wanted: types_pb2.Filter, payload: bytes) -> bool:
    """Whether a payload passes a filter."""
    form = wanted.WhichOneof("form")
    if form == "all_of":
        return all(passes(one, payload) for one in wanted.all_of.filters)
    if form == "any_of":
        return any(passes(one, payload) for one in wanted.any_of.filters)
    if form == "none_of":
        return not any(passes(one, payload) for one in wanted.none_of.filters)
    field = wanted.field
    there = list(_values(json.loads(payload) if payload else {}, field.path))
    if field.WhichOneof("test") == "exists":
        return bool(there) == field.exists
    leaves = [value for value in there if not isinstance(value, dict | list)]
    if field.WhichOneof("test") == "equals":
        return any(_same(value, _value(one)) for value in leaves for one in field.equals.values)
    return any(_within(value, field.range) for value in leaves if _is_number(value))


def _values(content: Any, path: str) -> Any:
    """Everything that stands at a path; arrays are looked through, and an empty one stands for itself."""
    if isinstance(content, list):
        for inner in content:
            yield from _values(inner, path)
    elif isinstance(content, dict):
        for key, inner in content.items():
            if key == path:
                yield from _elements(inner)
            elif path.startswith(f"{key}."):
                yield from _values(inner, path[len(key) + 1 :])


def _elements(content: Any) -> Any:
    if isinstance(content, list) and content:
        for inner in content:
            yield from _elements(inner)
    else:
        yield content


def _value(one: types_pb2.FilterValue) -> Any:
    form = one.WhichOneof("value")
    return None if form == "null_value" else getattr(one, form)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, other: Any) -> bool:
    alike = type(value) is type(other) or (_is_number(value) and _is_number(other))
    return alike and value == other


def _within(value: float, bounds: types_pb2.FilterRange) -> bool:
    tests = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    return all(test(_value(getattr(bounds, name))) for name, test in tests.items() if bounds.HasField(name))


# Few keys and few values, so that they meet; numbers where float64 rounds.
_keys = st.sampled_from(["a", "b", "a.b", "ü"])
_paths = st.sampled_from(["a", "b", "a.b", "ü", "b.a", "a.a", "b.ü", "a.a.b"])
_numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.5, 1e300, 2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1, 2**63 - 1, -(2**63)]),
)
_big = st.sampled_from([2**63, 2**64 + 1, 10**40, -(10**400), 10**400])
_texts = st.sampled_from(["", "1", "x", "ü", "\ud800"])
_leaves = st.one_of(st.none(), st.booleans(), _numbers, _big, _texts)
_contents = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=6
)
payloads = st.one_of(
    st.just(b""), st.dictionaries(_keys, _contents, max_size=3).map(lambda content: json.dumps(content).encode())
)


def value(of: Any) -> types_pb2.FilterValue:
    """A value of the contract."""
    if of is None:
        return types_pb2.FilterValue(null_value=True)
    name = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}[type(of)]
    return types_pb2.FilterValue(**{name: of})


_wanted_numbers = _numbers.map(value)
_wanted = st.one_of(st.none(), st.booleans(), _numbers, st.sampled_from(["", "1", "x", "ü"])).map(value)


def _range(lower: Any, upper: Any) -> types_pb2.FilterRange:
    return types_pb2.FilterRange(**dict(bound for bound in (lower, upper) if bound))


_bound = {
    side: st.none() | st.tuples(st.sampled_from(names), _wanted_numbers)
    for side, names in (("lower", ["gt", "gte"]), ("upper", ["lt", "lte"]))
}
_tests = st.one_of(
    st.lists(_wanted, min_size=1, max_size=3).map(lambda values: {"equals": {"values": values}}),
    st.tuples(_bound["lower"], _bound["upper"]).filter(any).map(lambda both: {"range": _range(*both)}),
    st.booleans().map(lambda there: {"exists": there}),
)
_fields = st.tuples(_paths, _tests).map(lambda both: types_pb2.Filter(field={"path": both[0], **both[1]}))
filters = st.recursive(
    _fields,
    lambda inner: st.tuples(
        st.sampled_from(["all_of", "any_of", "none_of"]), st.lists(inner, min_size=1, max_size=3)
    ).map(lambda both: types_pb2.Filter(**{both[0]: {"filters": both[1]}})),
    max_leaves=5,
)
