"""A caller's filter → the contract's: what each form means, and what is refused, with its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.engine.filters import passes
from vectorfleet import InvalidRequest, _filters, filter_rules
from vectorfleet.v1 import types_pb2

PAYLOAD = b'{"lang": "en", "price": 9.5, "tags": ["a", 7], "author": {"name": "Ada"}, "sold": null, "new": true}'


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"lang": "en"}, True),
        ({"lang": "de"}, False),
        ({"lang": "en", "price": 9.5}, True),
        ({"lang": "en", "price": 9}, False),
        ({"author.name": "Ada"}, True),
        ({"tags": "a"}, True),
        ({"tags": {"$eq": 7}}, True),
        ({"tags": {"$ne": 7}}, False),
        ({"lang": {"$in": ["de", "en"]}}, True),
        ({"lang": {"$in": {"de", "en"}}}, True),
        ({"tags": {"$in": np.asarray([6, 7])}}, True),
        ({"lang": {"$nin": ["de", "en"]}}, False),
        ({"nothing": {"$nin": [1]}}, True),
        ({"price": {"$gt": 9, "$lt": 10}}, True),
        ({"price": {"$gte": np.float32(9.5), "$lte": np.int64(10)}}, True),
        ({"price": {"$gt": 9.5}}, False),
        ({"price": {"$gt": 1, "$ne": 9.5}}, False),
        ({"sold": None}, True),
        ({"nothing": None}, False),
        ({"sold": {"$exists": True}, "nothing": {"$exists": False}}, True),
        ({"new": True}, True),
        ({"new": 1}, False),
        ({"new": np.bool_(True)}, True),
        ({"$or": [{"lang": "de"}, {"price": {"$lt": 10}}]}, True),
        ({"$and": [{"lang": "en"}, {"$not": {"tags": "a"}}]}, False),
        ({"$nor": [{"lang": "de"}, {"lang": "fr"}]}, True),
        ({"$not": {"lang": "en", "new": False}}, True),
    ],
)
def test_what_a_filter_means(wanted: Any, expected: bool) -> None:
    message = _filters.message(wanted)
    filter_rules.check(message)
    assert passes(message, PAYLOAD) is expected


def test_the_message_of_a_simple_filter_is_simple() -> None:
    assert _filters.message({"n": {"$gte": 2**53 + 1}}) == types_pb2.Filter(
        field={"path": "n", "range": {"gte": {"int_value": 2**53 + 1}}}
    )


def deep() -> dict[str, Any]:
    wanted: dict[str, Any] = {"a": 1}
    for _ in range(100):
        wanted = {"$not": wanted}
    return wanted


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("lang = en", ""),
        ([{"lang": "en"}], ""),
        ({}, ""),
        ({1: "a"}, ""),
        ({"\ud800": 1}, ""),
        ({"$xor": []}, ".$xor"),
        ({"$or": []}, ".$or"),
        ({"$or": {"a": 1}}, ".$or"),
        ({"$or": [{"a": 1}, {}]}, ".$or[1]"),
        ({"$or": [{"a": 1}, {"b": {"$near": 1}}]}, ".$or[1].b.$near"),
        ({"a": {"b": 1}}, ".a.b"),
        ({"a": {}}, ".a"),
        ({"a": [1, 2]}, ".a"),
        ({"a": {"$in": []}}, ".a.$in"),
        ({"a": {"$in": "abc"}}, ".a.$in"),
        ({"a": {"$in": [1, [2]]}}, ".a.$in[1]"),
        ({"a": {"$exists": 1}}, ".a.$exists"),
        ({"a": {"$gt": "z"}}, ".a.$gt"),
        ({"a": {"$gt": True}}, ".a.$gt"),
        ({"a": {"$gt": None}}, ".a.$gt"),
        ({"a": {"$eq": float("nan")}}, ".a.$eq"),
        ({"a": 2**63}, ".a"),
        ({"a": "\ud800"}, ".a"),
        ({"a": b"bytes"}, ".a"),
        ({"a": object()}, ".a"),
        (deep(), ".$not" * 16),
    ],
)
def test_what_is_refused(wanted: Any, place: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _filters.message(wanted)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FILTER", f"filter{place}")
    assert caught.value.message
