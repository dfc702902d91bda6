"""A caller's arguments: what fits the wire passes unchanged, everything else is refused with its position."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet import _arguments as arguments
from vectorfleet import limits
from vectorfleet.errors import InvalidRequest


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert caught.value.message
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    ("given_ids", "expected"),
    [
        (["a", "日本", "x" * 256], ["a", "日本", "x" * 256]),
        ([1, "2", np.int64(3)], ["1", "2", "3"]),
        (range(3), ["0", "1", "2"]),
        (np.array([5, 6], np.uint8), ["5", "6"]),
        (np.array(["p", "q"]), ["p", "q"]),
        ((str(one) for one in "ab"), ["a", "b"]),
        ([-7], ["-7"]),
    ],
)
def test_ids(given_ids: Any, expected: list[str]) -> None:
    assert arguments.point_ids(given_ids) == expected


@pytest.mark.parametrize(
    ("given_ids", "expected"),
    [
        ("abc", ("INVALID_FIELD", "ids")),
        (b"abc", ("INVALID_FIELD", "ids")),
        ([], ("INVALID_FIELD", "ids")),
        (["a", ""], ("INVALID_ID", "ids[1]")),
        (["a", "é" * 128 + "x"], ("INVALID_ID", "ids[1]")),
        (["\ud800"], ("INVALID_ID", "ids[0]")),
        ([1.5], ("INVALID_ID", "ids[0]")),
        ([True], ("INVALID_ID", "ids[0]")),
        ([None], ("INVALID_ID", "ids[0]")),
        ([b"a"], ("INVALID_ID", "ids[0]")),
        (np.array([1.0]), ("INVALID_ID", "ids[0]")),
        (7, ("INVALID_FIELD", "ids")),
        (np.array(7), ("INVALID_FIELD", "ids")),
    ],
)
def test_bad_ids(given_ids: Any, expected: tuple[str, str]) -> None:
    assert refused(lambda: arguments.point_ids(given_ids)) == expected


@given(st.lists(st.text(max_size=300), min_size=1, max_size=5))
def test_ids_pass_exactly_when_their_bytes_do(ids: list[str]) -> None:
    def size(text: str) -> int:
        return len(text.encode(errors="surrogatepass"))

    fine = all(1 <= size(one) <= limits.ID_BYTES_MAX and one.isprintable() for one in ids)
    if fine:
        assert arguments.point_ids(ids) == ids
    elif any(not 1 <= size(one) <= limits.ID_BYTES_MAX for one in ids):
        assert refused(lambda: arguments.point_ids(ids))[0] == "INVALID_ID"


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "u1", "<i8"])
def test_vectors_of_any_numbers_become_little_endian_float32(dtype: str) -> None:
    given_vectors = np.arange(6).reshape(3, 2).astype(dtype)
    result = arguments.matrix(given_vectors)
    assert result.dtype == np.dtype("<f4")
    assert result.flags.c_contiguous
    assert result.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert arguments.matrix(given_vectors.tolist()).tolist() == result.tolist()


def test_vectors_that_are_right_are_not_copied() -> None:
    right = np.ones((4, 3), np.float32)
    assert arguments.matrix(right) is right
    assert arguments.matrix(np.ones((3, 4), np.float32).T).flags.c_contiguous


def test_one_vector_is_enough_for_a_query() -> None:
    assert arguments.matrix([1, 2, 3], one_is_enough=True).shape == (1, 3)
    assert refused(lambda: arguments.matrix([1, 2, 3])) == ("WRONG_DIMENSION", "vectors")


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([], ("INVALID_FIELD", "vectors")),
        (np.empty((0, 3)), ("INVALID_FIELD", "vectors")),
        (np.empty((3, 0)), ("WRONG_DIMENSION", "vectors")),
        ([[1, 2], [3]], ("WRONG_DIMENSION", "vectors")),
        (np.ones((2, 2, 2)), ("WRONG_DIMENSION", "vectors")),
        (5.0, ("WRONG_DIMENSION", "vectors")),
        ([["a", "b"]], ("INVALID_FIELD", "vectors")),
        ([[1, None]], ("INVALID_FIELD", "vectors")),
        ([[1j]], ("INVALID_FIELD", "vectors")),
        ([[True]], ("INVALID_FIELD", "vectors")),
        ([[1, 2], [3, float("nan")]], ("NOT_FINITE", "vectors[1]")),
        ([[float("-inf"), 2]], ("NOT_FINITE", "vectors[0]")),
        (np.array([[1.0], [1e39]]), ("NOT_FINITE", "vectors[1]")),
    ],
)
def test_bad_vectors(vectors: Any, expected: tuple[str, str]) -> None:
    assert refused(lambda: arguments.matrix(vectors)) == expected


def test_the_last_row_of_many_is_checked_too() -> None:
    vectors = np.zeros((40_000, 2), np.float32)
    vectors[39_999, 1] = np.nan
    assert refused(lambda: arguments.matrix(vectors)) == ("NOT_FINITE", "vectors[39999]")


def test_payloads_are_json() -> None:
    given_payloads = [{"a": "日本", "n": [1, 2.5, None]}, None, {}, {"np": np.float32(2), "list": np.arange(2)}]
    raw = arguments.payload_bytes(given_payloads, 4)
    assert raw[1] == b""
    assert [json.loads(one) if one else None for one in raw] == [
        {"a": "日本", "n": [1, 2.5, None]}, None, {}, {"np": 2.0, "list": [0, 1]},
    ]  # fmt: skip
    assert arguments.payload_bytes(None, 4) == []


def _circle() -> dict[str, Any]:
    one: dict[str, Any] = {}
    one["self"] = one
    return one


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        ({"a": 1}, ("INVALID_FIELD", "payloads")),
        ("ab", ("INVALID_FIELD", "payloads")),
        (7, ("INVALID_FIELD", "payloads")),
        ([None], ("INVALID_FIELD", "payloads")),
        ([None, [1]], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {"a": object()}], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {"a": float("nan")}], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {"a": np.array([np.inf])}], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {"a": "\ud800"}], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {(1, 2): 3}], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, _circle()], ("INVALID_PAYLOAD", "payloads[1]")),
        ([None, {"a": "x" * limits.PAYLOAD_BYTES_MAX}], ("PAYLOAD_TOO_LARGE", "payloads[1]")),
    ],
)
def test_bad_payloads(payloads: Any, expected: tuple[str, str]) -> None:
    assert refused(lambda: arguments.payload_bytes(payloads, 2)) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé日"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
        max_leaves=8,
    )
)
def test_any_json_comes_back(value: Any) -> None:
    (raw,) = arguments.payload_bytes([{"value": value}], 1)
    assert json.loads(raw) == {"value": value}


@pytest.mark.parametrize("texts", [[], [""], ["a", 5], ["\udfff"], 7, np.array("a")])
def test_bad_texts(texts: Any) -> None:
    reason, where = refused(lambda: arguments.text_list(texts))
    assert reason == "INVALID_FIELD"
    assert where.startswith("texts")


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "3", None])
def test_numbers_that_do_not_fit(value: Any) -> None:
    assert refused(lambda: arguments.unsigned(value, "k")) == ("INVALID_FIELD", "k")


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), 1e10, pytest.param(10**400, id="huge"), "soon", None]
)
def test_times_that_are_no_deadline(value: Any) -> None:
    assert refused(lambda: arguments.seconds(value)) == ("INVALID_FIELD", "timeout")


@pytest.mark.parametrize("address", ["", "localhost", ":7700", "h:", "h:0", "h:65536", "h:٣", "http://h", None])
def test_addresses_that_are_none(address: Any) -> None:
    assert refused(lambda: arguments.target(address)) == ("INVALID_FIELD", "address")


@pytest.mark.parametrize("address", ["127.0.0.1:7700", "router.local:1", "[::1]:65535"])
def test_addresses(address: str) -> None:
    assert arguments.target(address) == address
