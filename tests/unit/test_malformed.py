"""Requests that do not parse, or must not: named in bounded time, whatever the bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet import malformed
from vectorfleet.v1 import point_service_pb2, search_service_pb2

UPSERT = point_service_pb2.UpsertRequest.DESCRIPTOR


def test_the_string_at_fault_is_named_wherever_it_stands() -> None:
    points = [point_service_pb2.PointInput(id=name, vector=b"1234") for name in ("fine", "also", "QQQQ")]
    good = point_service_pb2.UpsertRequest(collection="c", points=points).SerializeToString()
    error = malformed.explain(UPSERT, good.replace(b"QQQQ", b"\xc3Q\xffQ"))
    assert (error.reason, error.field) == ("INVALID_ID", "points[2].id")
    packed = point_service_pb2.PackedPoints(ids=["a", "QQQQ"])
    good = point_service_pb2.UpsertRequest(collection="c", packed=packed).SerializeToString()
    assert malformed.explain(UPSERT, good.replace(b"QQQQ", b"\xff\xff\xff\xff")).field == "packed.ids[1]"
    good = point_service_pb2.UpsertRequest(collection="QQQQ").SerializeToString()
    error = malformed.explain(UPSERT, good.replace(b"QQQQ", b"\xff\xff\xff\xff"))
    assert (error.reason, error.field) == ("INVALID_FIELD", "collection")


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for message in (point_service_pb2.UpsertRequest, search_service_pb2.SearchStreamRequest):
        try:
            message.FromString(data)
        except DecodeError:
            assert malformed.explain(message.DESCRIPTOR, data).reason in ("INVALID_FIELD", "INVALID_ID")
    assert 0 <= malformed.first_number(data, 1) < 2**64
    assert malformed.crowded(data) is None


def test_a_hostile_request_is_looked_through_only_so_far() -> None:
    far = b"\x12\x00" * (2 * malformed.LOOKS_MAX) + b"\x0a\x02\xff\xfe"
    assert malformed.explain(UPSERT, far).field == ""
    assert malformed.explain(UPSERT, far[-4:]).field == "collection"


def test_more_entries_than_any_list_may_have() -> None:
    empty = b"\x12\x00" * malformed.LARGE_BYTES
    assert malformed.crowded(empty) is not None
    wrapped = search_service_pb2.SearchStreamRequest(request_id=3, request={"queries": [{}] * 200_000})
    data = wrapped.SerializeToString()
    assert malformed.crowded(data) is None
    assert malformed.crowded(data, wrapped_in=2) is not None
    assert malformed.first_number(data, 1) == 3
    full = point_service_pb2.UpsertRequest(points=[{"id": str(i), "vector": bytes(64)} for i in range(10_000)])
    assert malformed.crowded(full.SerializeToString()) is None


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a", b"\x0a\x05ab", b"\x0b\x0c", b"\x09\x00"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    assert malformed.explain(UPSERT, data).field == ""
    assert malformed.first_number(data, 7) == 0
