"""Filters over postings, against plain Python over the payloads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_server.engine import postings, terms
from shard_server.engine.matching import matching_rows
from shard_server.engine.postings import DROPPED, Blocks
from tests.unit.engine.filters import filters, passes, payloads
from vectorfleet.v1 import types_pb2

many = st.lists(payloads, max_size=12)


@settings(max_examples=200)
@given(rows=many, wanted=filters)
def test_a_filter_means_what_plain_python_says(rows: list[bytes], wanted: types_pb2.Filter) -> None:
    assert matching_rows(wanted, postings.of_payloads(rows)).tolist() == [passes(wanted, row) for row in rows]


@settings(max_examples=60)
@given(data=st.data(), sources=st.lists(many, max_size=4), wanted=filters, region_rows=st.integers(1, 40))
def test_joined_postings_are_those_of_the_rows_that_were_kept(
    data: st.DataObject, sources: list[list[bytes]], wanted: types_pb2.Filter, region_rows: int
) -> None:
    """Rows are renamed and dropped as a merge of segments does it; small regions, so that there are several."""
    kept: list[bytes] = []
    parts = []
    for rows in sources:
        renamed = np.full(len(rows), DROPPED, np.uint32)
        for row, payload in enumerate(rows):
            if data.draw(st.booleans()):
                renamed[row] = len(kept)
                kept.append(payload)
        parts.append((postings.of_payloads(rows), renamed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postings, "_REGION_ROWS", region_rows)
        once = postings.joined(parts, len(kept))
        twice = postings.joined([(once, np.arange(len(kept), dtype=np.uint32))], len(kept))
    expected = [passes(wanted, row) for row in kept]
    assert matching_rows(wanted, once).tolist() == expected
    assert matching_rows(wanted, twice).tolist() == expected


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), min_size=2, max_size=2))
def test_keys_sort_as_numbers_do(pair: list[float]) -> None:
    first, second = pair
    one, other = terms.key_of(first), terms.key_of(second)
    if abs(first) < 2**100 and abs(second) < 2**100:
        assert (one < other, one == other) == (first < second, first == second)
    assert [tuple(key) for key in terms.keys_of(pair).tolist()] == [one, other]


def test_blocks_stay_few_and_know_all_rows() -> None:
    blocks, rows = Blocks(), [json.dumps({"n": number}).encode() for number in range(500)]
    for number, row in enumerate(rows):
        blocks.add([row])
        assert blocks.rows == number + 1
        assert len(blocks.postings) <= (number + 1).bit_length()
    wanted = types_pb2.Filter(field={"path": "n", "range": {"gte": {"int_value": 490}}})
    found = np.concatenate([matching_rows(wanted, block) for block in blocks.postings])
    assert np.flatnonzero(found).tolist() == list(range(490, 500))


def test_a_payload_as_deep_as_json_can_be_read_is_read() -> None:
    depth = 900

    def at_depth(left: int) -> postings.Postings:
        return postings.of_payloads([payload]) if left == 0 else at_depth(left - 1)

    payload = b'{"a":' * depth + b"1" + b"}" * depth
    wanted = types_pb2.Filter(field={"path": ".".join(["a"] * depth), "equals": {"values": [{"int_value": 1}]}})
    assert matching_rows(wanted, at_depth(200)).tolist() == [True]


@pytest.mark.parametrize(
    "junk", [b" ", b"{", b"[]", b'"a"', b"1", b"\xff", b'{"a":' * 30_000, b"[" * 30_000, b'{"a":' + b"9" * 5_000 + b"}"]
)
def test_what_is_no_json_object_has_no_fields_and_does_not_hold_up_its_neighbours(junk: bytes) -> None:
    rows = postings.of_payloads([b'{"a": 1}', junk, b'{"a": 2}'])
    exists = types_pb2.Filter(field={"path": "a", "exists": True})
    assert matching_rows(exists, rows).tolist() == [True, False, True]
    assert matching_rows(types_pb2.Filter(none_of={"filters": [exists]}), rows).tolist() == [False, True, False]
