"""validation: what is let through, what is refused, and with which field."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import validation
from vectorfleet import limits
from vectorfleet.errors import InvalidRequest
from vectorfleet.v1 import point_service_pb2, search_service_pb2, types_pb2

L2, COSINE = types_pb2.METRIC_L2, types_pb2.METRIC_COSINE
DIM = 3


def raw(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def refusal(check: Any, *arguments: Any, **named: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        check(*arguments, **named)
    assert caught.value.message
    return caught.value.reason, caught.value.field


def search(*queries: dict[str, Any], **rest: Any) -> search_service_pb2.SearchRequest:
    return search_service_pb2.SearchRequest(
        collection="c", queries=[search_service_pb2.Query(**query) for query in queries], **rest
    )


def test_queries_of_all_forms_stand_in_their_rows() -> None:
    request = search({"text": "a"}, {"vector": raw(1, 2, 3)}, {"values": {"values": [4, 5, 6]}}, {"text": "b"})
    rows = validation.queries(request, DIM)
    assert rows.vectors.dtype == np.float32
    assert rows.vectors.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6], [0, 0, 0]]
    assert (rows.text_rows, rows.texts) == ((0, 3), ("a", "b"))


def test_packed_queries_are_read_without_a_copy_of_each() -> None:
    rows = validation.queries(search({"vector": raw(1, 2, 3)}, {"vector": raw(4, 5, 6)}), DIM)
    assert rows.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not rows.texts


@pytest.mark.parametrize(
    ("query", "reason", "form"),
    [
        ({"vector": raw(1, 2)}, "WRONG_DIMENSION", "vector"),
        ({"vector": b"12345"}, "WRONG_DIMENSION", "vector"),
        ({"vector": b""}, "INVALID_FIELD", "vector"),
        ({"values": {"values": [1, 2, 3, 4]}}, "WRONG_DIMENSION", "values"),
        ({"text": ""}, "INVALID_FIELD", "text"),
        ({"text": "é" * (limits.TEXT_BYTES_MAX // 2) + "x"}, "INVALID_FIELD", "text"),
        ({}, "INVALID_FIELD", "vector"),
    ],
)
def test_a_bad_query_is_named(query: dict[str, Any], reason: str, form: str) -> None:
    request = search({"vector": raw(1, 2, 3)}, query)
    assert refusal(validation.queries, request, DIM) == (reason, f"queries[1].{form}")


@pytest.mark.parametrize("count", [0, limits.QUERIES_MAX + 1])
def test_how_many_queries(count: int) -> None:
    assert refusal(validation.queries, search(*[{"text": "a"}] * count), DIM) == ("INVALID_FIELD", "queries")


@pytest.mark.parametrize(
    ("bad", "metric", "reason"),
    [
        (np.nan, L2, "NOT_FINITE"),
        (np.inf, L2, "NOT_FINITE"),
        (-np.inf, COSINE, "NOT_FINITE"),
        (1.1e18, L2, "NOT_FINITE"),  # finite, but longer than any may be
        (3e38, COSINE, "NOT_FINITE"),
    ],
)
def test_numbers_that_float32_cannot_carry(bad: float, metric: int, reason: str) -> None:
    vectors = np.ones((5, DIM), np.float32)
    vectors[3, 1] = bad
    assert refusal(validation.check_vectors, vectors, metric, lambda row: f"v[{row}]") == (reason, "v[3]")
    assert refusal(validation.check_vectors, vectors[3:4], metric, lambda row: f"v[{row}]") == (reason, "v[0]")


@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-30])
def test_vectors_without_direction(tiny: float) -> None:
    vectors = np.ones((5, DIM), np.float32)
    vectors[4] = tiny
    assert refusal(validation.check_vectors, vectors, COSINE, str) == ("ZERO_VECTOR", "4")
    assert refusal(validation.check_vectors, vectors[4:], COSINE, str) == ("ZERO_VECTOR", "0")
    validation.check_vectors(vectors, L2, str)
    validation.check_vectors(vectors, COSINE, str, skip={4: "a text"})


@given(
    st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=4), st.sampled_from([1, 2, 3])
)
def test_what_is_let_through_can_be_compared(rows: list[list[float]], metric: int) -> None:
    vectors = np.array(rows, np.float32)
    try:
        validation.check_vectors(vectors, metric, str)
    except InvalidRequest as error:
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        row = int(error.field)
        assert not np.isfinite(lengths[row]) or lengths[row] > 0.99e18 or (metric == COSINE and lengths[row] < 1e-22)
        return
    for a in vectors:
        for b in vectors:
            assert np.isfinite(np.float32(((a - b) ** 2).sum(dtype=np.float32)))
            assert np.isfinite((a * b).sum(dtype=np.float32))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": limits.K_MAX + 1}, "k"),
        ({"params": {"nprobe": limits.NPROBE_MAX + 1}}, "params.nprobe"),
        ({"params": {"oversample": 0.99}}, "params.oversample"),
        ({"params": {"oversample": -1.0}}, "params.oversample"),
        ({"params": {"oversample": 1000.5}}, "params.oversample"),
        ({"params": {"oversample": float("nan")}}, "params.oversample"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], field: str) -> None:
    assert refusal(validation.search_options, search(**options)) == ("INVALID_FIELD", field)


def test_options_within() -> None:
    assert validation.search_options(search()) == validation.SearchOptions(limits.K_DEFAULT)
    request = search(k=limits.K_MAX, params={"nprobe": limits.NPROBE_MAX, "oversample": 1000.0, "exact": True})
    assert validation.search_options(request) == validation.SearchOptions(
        limits.K_MAX, limits.NPROBE_MAX, 1000.0, exact=True
    )


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_coverage_out_of_range(share: float) -> None:
    assert refusal(validation.min_coverage, search(min_coverage=share))[1] == "min_coverage"


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "n" * 128])
def test_names(name: str) -> None:
    assert validation.collection_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", "n" * 129, "٣"])
def test_names_that_are_none(name: str) -> None:
    assert refusal(validation.collection_name, name) == ("INVALID_FIELD", "collection")


def packed(**changes: Any) -> point_service_pb2.PackedPoints:
    good = {"ids": ["a", "b"], "vectors": raw(1, 2, 3, 4, 5, 6)}
    return point_service_pb2.PackedPoints(**{**good, **changes})


def test_packed_points() -> None:
    points = validation.packed_points(packed(payloads=[b"", b'{"x": 1}']), DIM, L2)
    assert points.ids == ["a", "b"]
    assert points.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert points.payloads == [b"", b'{"x": 1}']
    assert validation.packed_points(packed(payloads=[b"", b""]), DIM, L2).payloads == []


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"ids": []}, "INVALID_FIELD", "packed.ids"),
        ({"ids": ["a"] * 10_001}, "INVALID_FIELD", "packed.ids"),
        ({"ids": ["a", ""]}, "INVALID_ID", "packed.ids[1]"),
        ({"ids": ["a", "é" * 128 + "x"]}, "INVALID_ID", "packed.ids[1]"),
        ({"ids": ["a"]}, "WRONG_DIMENSION", "packed.vectors"),
        ({"vectors": raw(1, 2, 3, 4, 5, np.nan)}, "NOT_FINITE", "packed.vectors[1]"),
        ({"payloads": [b"{}"]}, "INVALID_FIELD", "packed.payloads"),
        ({"payloads": [b"{}", b"[]"]}, "INVALID_PAYLOAD", "packed.payloads[1]"),
    ],
)
def test_bad_packed_points(changes: dict[str, Any], reason: str, field: str) -> None:
    assert refusal(validation.packed_points, packed(**changes), DIM, L2) == (reason, field)


def test_ids_may_be_anything_of_256_bytes() -> None:
    ids = ["é" * 128, "x" * 256, "\x00", "\U0001f600" * 64]
    assert validation.point_ids(ids, "ids") == ids


def test_of_each_id_the_last_point_stays_in_order() -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(5, 2)
    points = validation.Points(list("abacb"), vectors, [b"0", b"1", b"2", b"3", b"4"]).last_of_each_id()
    assert (points.ids, points.payloads) == (["a", "c", "b"], [b"2", b"3", b"4"])
    assert points.vectors.tolist() == [[4, 5], [6, 7], [8, 9]]
    unique = validation.Points(list("ab"), vectors[:2], [])
    assert unique.last_of_each_id() is unique


@pytest.mark.parametrize(
    "payload",
    [
        b"[1]", b"1", b"null", b'"a"', b"{", b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": "\xff"}',
        '\ufeff{"a": 1}'.encode(), '{"a": 1}'.encode("utf-16"), b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a": 1e999}', b'{"a": [-1E400]}', b'{"a": ' + b"9" * 400 + b'.5}', rb'{"a": "\ud800"}', rb'{"\uDfff": 1}',
    ],
)  # fmt: skip
def test_payloads_that_are_none(payload: bytes) -> None:
    assert refusal(validation.check_payload, payload, "p") == ("INVALID_PAYLOAD", "p")


def test_payloads_with_pairs_and_large_numbers() -> None:
    payload = rb'{"\ud83d\ude00": "\\ud800", "large": [1e308, -1.5E-400, 123456789012345678901234567890]}'
    assert validation.check_payload(payload, "p") == {
        "😀": "\\ud800",
        "large": [1e308, 0.0, 123456789012345678901234567890],
    }


def test_a_payload_has_a_limit() -> None:
    payload = json.dumps({"a": "x" * (limits.PAYLOAD_BYTES_MAX - 9)}).encode()
    assert len(payload) == limits.PAYLOAD_BYTES_MAX
    validation.check_payload(payload, "p")
    assert refusal(validation.check_payload, payload + b" ", "p") == ("PAYLOAD_TOO_LARGE", "p")


@given(
    st.dictionaries(st.text().filter(lambda key: key != "text"), st.integers() | st.text() | st.none()),
    st.text(min_size=1),
    st.sampled_from(["", " ", "\n "]),
)
def test_a_text_joins_its_payload(content: dict[str, Any], text: str, space: str) -> None:
    text = text.encode(errors="ignore").decode() or "x"
    payload = (json.dumps(content) + space).encode()
    joined = validation.payload_with_text(payload, content, text, "p")
    assert json.loads(joined) == {**content, "text": text}
    assert validation.check_payload(joined, "p")["text"] == text


def test_a_text_that_the_payload_has_already() -> None:
    payload = b'{"text": "a", "n": 1.50}'
    assert validation.payload_with_text(payload, {"text": "a"}, "a", "p") == payload
    assert refusal(validation.payload_with_text, payload, {"text": "a"}, "b", "p") == ("INVALID_PAYLOAD", "p")
    assert validation.payload_with_text(b"", {}, "a", "p") == b'{"text":"a"}'
    assert refusal(validation.payload_with_text, b"", {}, "x" * limits.PAYLOAD_BYTES_MAX, "p")[0] == "PAYLOAD_TOO_LARGE"


def spec(**changes: Any) -> types_pb2.CollectionSpec:
    return types_pb2.CollectionSpec(**{"name": "c", "dim": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "spec.name"),
        ({"dim": 0}, "spec.dim"),
        ({"dim": limits.DIM_MAX + 1}, "spec.dim"),
        ({"metric": 9}, "spec.metric"),
        ({"shards": limits.SHARDS_MAX + 1}, "spec.shards"),
        ({"replicas": 2}, "spec.replicas"),
        ({"index": {"kind": 9}}, "spec.index.kind"),
        ({"index": {"kind": types_pb2.INDEX_KIND_FLAT, "m": 2}}, "spec.index"),
        ({"index": {"nlist": limits.NLIST_MAX + 1}}, "spec.index.nlist"),
        ({"index": {"train_points": 255}}, "spec.index.train_points"),
        ({"index": {"train_points": limits.TRAIN_POINTS_MAX + 1}}, "spec.index.train_points"),
    ],
)
def test_specifications_out_of_range(changes: dict[str, Any], field: str) -> None:
    assert refusal(validation.collection_spec, spec(**changes)) == ("INVALID_FIELD", field)


def test_m_divides_dim() -> None:
    validation.check_subquantisers(0, 7)
    validation.check_subquantisers(5, 10)
    assert refusal(validation.check_subquantisers, 3, 10) == ("INVALID_FIELD", "spec.index.m")
    assert refusal(validation.check_subquantisers, 20, 10) == ("INVALID_FIELD", "spec.index.m")


def test_page_sizes() -> None:
    assert validation.page_size(0, 100, 1000) == 100
    assert validation.page_size(1000, 100, 1000) == 1000
    assert refusal(validation.page_size, 1001, 100, 1000) == ("INVALID_FIELD", "page_size")


def test_a_search_carries_its_filter_among_its_options() -> None:
    wanted = types_pb2.Filter(field={"path": "lang", "exists": True})
    options = [
        validation.search_options(search_service_pb2.SearchRequest(filter=one)) for one in (wanted, wanted, None)
    ]
    assert options[0] == options[1] != options[2]
    assert types_pb2.Filter.FromString(options[0].wanted) == wanted
    assert options[2].wanted == b""
    with pytest.raises(InvalidRequest):
        validation.search_options(search_service_pb2.SearchRequest(filter={}))
