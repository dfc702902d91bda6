"""Requests and answers as pure values: how rows are cut into calls, and how answers are put together again."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet import _answers as answers
from vectorfleet import _codec as codec
from vectorfleet import errors, limits
from vectorfleet._models import IndexOptions
from vectorfleet.internal.v1 import token_pb2
from vectorfleet.v1 import cluster_service_pb2, point_service_pb2, search_service_pb2, types_pb2


def rows_of(plan: codec.Upsert) -> list[int]:
    return [row for call in plan.calls for row in call.rows]


def token(uid: str, **seqnos: int) -> bytes:
    shards = [token_pb2.ShardSeqno(shard=int(shard[1:]), seqno=seqno) for shard, seqno in seqnos.items()]
    return token_pb2.ConsistencyToken(collection_uid=uid, shards=shards).SerializeToString()


def test_an_upsert_is_cut_by_points() -> None:
    count = 2 * codec.VECTORS_PER_CALL + 7
    vectors = np.arange(count, dtype=np.float32)[:, None]
    calls = list(codec.upsert("c", range(count), vectors, None, [{"n": n} for n in range(count)]).calls)
    assert [len(call.request.packed.ids) for call in calls] == [codec.VECTORS_PER_CALL] * 2 + [7]
    last = calls[-1].request
    assert last.collection == "c"
    assert list(last.packed.ids) == [str(n) for n in range(count - 7, count)]
    assert np.frombuffer(last.packed.vectors, "<f4").tolist() == list(range(count - 7, count))
    assert last.packed.payloads[-1] == b'{"n":%d}' % (count - 1)


def test_an_upsert_is_cut_by_bytes() -> None:
    vectors = np.zeros((3_000, 4_096), np.float32)
    for call in codec.upsert("c", range(3_000), vectors, None, None).calls:
        assert call.request.ByteSize() <= codec.BYTES_PER_CALL + 2 * limits.PAYLOAD_BYTES_MAX
    payloads = [{"x": "y" * 60_000}] * 600
    sizes = [
        call.request.ByteSize() for call in codec.upsert("c", range(600), np.zeros((600, 1)), None, payloads).calls
    ]
    assert len(sizes) > 2
    assert max(sizes) <= codec.BYTES_PER_CALL + 2 * limits.PAYLOAD_BYTES_MAX


def test_texts_go_in_small_calls() -> None:
    plan = codec.upsert("c", range(300), None, (f"text {n}" for n in range(300)), None)
    calls = list(plan.calls)
    assert plan.in_flight == codec.TEXT_CALLS_IN_FLIGHT
    assert [len(call.request.points) for call in calls] == [128, 128, 44]
    assert calls[1].request.points[0] == point_service_pb2.PointInput(id="128", text="text 128")


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30))
def test_of_equal_ids_only_the_last_is_sent(ids: list[str]) -> None:
    vectors = np.arange(len(ids), dtype=np.float32)[:, None]
    (call,) = codec.upsert("c", ids, vectors, None, None).calls
    sent = dict(zip(call.request.packed.ids, np.frombuffer(call.request.packed.vectors, "<f4").tolist(), strict=True))
    assert sent == {one: float(position) for position, one in enumerate(ids)}
    assert list(call.rows) == sorted(call.rows)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vectors": [[1.0]]}, "vectors"),
        ({"vectors": None}, "vectors"),
        ({"texts": ["a", "b"]}, "texts"),
        ({"vectors": None, "texts": ["a"]}, "texts"),
        ({"vectors": None, "texts": "ab"}, "texts"),
        ({"payloads": [{}]}, "payloads"),
        ({"collection": 5}, "name"),
        ({"collection": "\ud800"}, "name"),
    ],
)
def test_arguments_that_do_not_match(changes: dict[str, Any], field: str) -> None:
    fine: dict[str, Any] = {
        "collection": "c",
        "ids": ["a", "b"],
        "vectors": [[1.0], [2.0]],
        "texts": None,
        "payloads": None,
    }
    with pytest.raises(errors.InvalidRequest) as caught:
        codec.upsert(**{**fine, **changes})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("packed.vectors[1]", "vectors[70]"),
        ("packed.ids[0]", "ids[60]"),
        ("packed.vectors", "vectors"),
        ("points[2].text", "texts[80]"),
        ("points[2].payload", "payloads[80]"),
        ("queries[0].vector", "vectors[60]"),
        ("ids[2]", "ids[80]"),
        ("ids[3]", "ids[3]"),
        ("spec.index.m", "index.m"),
        ("params.nprobe", "nprobe"),
        ("k", "k"),
        ("", ""),
    ],
)
def test_a_field_at_fault_is_named_as_the_caller_knows_it(field: str, expected: str) -> None:
    error = errors.InvalidRequest("why", reason="NOT_FINITE", field=field)
    found = codec.located(error, [60, 70, 80])
    assert (found.field, found.reason, found.message, type(found)) == (
        expected,
        "NOT_FINITE",
        "why",
        errors.InvalidRequest,
    )


def test_create_says_only_what_was_asked() -> None:
    request = codec.create_collection("c", 3, None, 0, "", None)
    assert request.spec == types_pb2.CollectionSpec(name="c", dim=3)
    request = codec.create_collection("c", np.int64(4), "cosine", 2, "m", IndexOptions("ivf_pq", 16, 2, 300))
    assert request.spec.metric == types_pb2.METRIC_COSINE
    assert (request.spec.dim, request.spec.shards, request.spec.embedding_model) == (4, 2, "m")
    index = request.spec.index
    assert (index.kind, index.nlist, index.m, index.train_points) == (types_pb2.INDEX_KIND_IVF_PQ, 16, 2, 300)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dim": -1}, "dim"),
        ({"dim": 1.5}, "dim"),
        ({"metric": "L2"}, "metric"),
        ({"metric": np.ones(2)}, "metric"),
        ({"index": "ivf_pq"}, "index"),
        ({"shards": -1}, "shards"),
        ({"index": IndexOptions(kind="hnsw")}, "index.kind"),  # type: ignore[arg-type]
        ({"index": IndexOptions(m=-3)}, "index.m"),
        ({"name": None}, "name"),
    ],
)
def test_create_refuses_words_that_do_not_exist(changes: dict[str, Any], field: str) -> None:
    fine: dict[str, Any] = {"name": "c", "dim": 3, "metric": None, "shards": 0, "embedding_model": "", "index": None}
    with pytest.raises(errors.InvalidRequest) as caught:
        codec.create_collection(**{**fine, **changes})
    assert caught.value.field == field


def test_a_collection_is_read_whole() -> None:
    message = types_pb2.Collection(uid="u")
    message.spec.CopyFrom(types_pb2.CollectionSpec(name="c", dim=3, metric=types_pb2.METRIC_DOT, shards=2, replicas=1))
    message.spec.index.kind = types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN
    message.create_time.FromSeconds(1_800_000_000)
    bare = answers.collection(message)
    assert (bare.metric, bare.index.kind, bare.progress, bare.coverage) == ("dot", "ivf_pq_fast_scan", None, None)
    assert bare.create_time == datetime.datetime.fromtimestamp(1_800_000_000, datetime.UTC)
    message.progress.codebook.version = 3
    message.coverage.missing.add(shard=1, reason="SHARD_UNAVAILABLE", message="gone")
    message.coverage.shards_total = 2
    full = answers.collection(message)
    assert full.progress is not None
    assert full.progress.codebook.version == 3
    assert full.coverage is not None
    assert not full.coverage.complete
    assert full.coverage.missing[0].reason == "SHARD_UNAVAILABLE"


def test_words_of_a_newer_server_do_not_stop_us() -> None:
    message = cluster_service_pb2.GetClusterResponse()
    message.shards.add(collection="c").replicas.add(node="n", status=77)  # type: ignore[arg-type]
    assert answers.cluster_info(message).shards[0].replicas[0].status == "unknown-77"


def test_tokens_of_several_calls_become_one() -> None:
    merged = answers.merged_token([token("u", s0=5, s2=9), token("u", s0=3, s1=1), token("u", s2=8)])
    assert merged == token("u", s0=5, s1=1, s2=9)
    assert answers.merged_token([b"as it came"]) == b"as it came"


def test_a_search_is_cut_into_calls_and_joined() -> None:
    vectors = np.arange(2_100, dtype=np.float32)[:, None]
    plan = codec.search("c", vectors, None, k=2, nprobe=3, oversample=1.5, exact=True, with_payload=True,
                        with_vector=False, min_coverage=0.5, consistency_token=b"t")  # fmt: skip
    calls = list(plan.calls)
    assert [len(call.request.queries) for call in calls] == [1024, 1024, 52]
    for call in calls:
        assert (call.request.k, call.request.params.nprobe, call.request.consistency_token) == (2, 3, b"t")
        assert (call.request.params.oversample, call.request.params.exact, call.request.min_coverage) == (
            1.5,
            True,
            0.5,
        )
    assert np.frombuffer(calls[1].request.queries[0].vector, "<f4").tolist() == [1024.0]

    def answer(call: codec.Call[Any], missing: list[int]) -> search_service_pb2.SearchResponse:
        coverage = types_pb2.Coverage(shards_total=4, shards_answered=4 - len(missing))
        for shard in missing:
            coverage.missing.add(shard=shard, reason="SHARD_UNAVAILABLE")
        assert call.request.packed
        packed = search_service_pb2.PackedHits(
            counts=np.ones(len(call.rows), "<u4").tobytes(),
            ids=[str(row) for row in call.rows],
            scores=np.array(call.rows, "<f4").tobytes(),
        )
        return search_service_pb2.SearchResponse(packed=packed, coverage=coverage)

    found = answers.search_result([answer(calls[0], []), answer(calls[1], [2]), answer(calls[2], [1, 2])], plan.k)
    assert len(found) == 2_100
    assert found.ids.tolist() == [[str(row), ""] for row in range(2_100)]
    assert found.scores[:, 0].tolist() == list(range(2_100))
    assert [(hits[0].id, hits[0].vector) for hits in found.hits] == [(str(row), None) for row in range(2_100)]
    assert (found.coverage.shards_total, found.coverage.shards_answered) == (4, 2)
    assert [gap.shard for gap in found.coverage.missing] == [1, 2]


def test_arrays_are_filled_up_and_made_once() -> None:
    response = search_service_pb2.SearchResponse(coverage=types_pb2.Coverage(shards_total=1, shards_answered=1))
    packed = response.packed
    packed.ids.append("a")
    packed.counts, packed.scores = np.array([1, 0], "<u4").tobytes(), np.float32(1.5).tobytes()
    packed.payloads.append(b'{"x":1}')
    packed.vectors = np.float32([1, 2]).tobytes()
    found = answers.search_result([response], 3)
    assert found.ids.tolist() == [["a", "", ""], ["", "", ""]]
    assert found.scores.dtype == np.float32
    assert found.scores[0, 0] == 1.5
    assert np.isnan(found.scores).sum() == 5
    assert found.ids is found.ids
    assert found.hits is found.hits
    (hit,) = found.hits[0]
    assert (hit.id, hit.score, hit.payload, hit.vector is not None and hit.vector.tolist()) == (
        "a",
        1.5,
        {"x": 1},
        [1, 2],
    )
    assert found.hits[1] == []
    assert repr(found) == "<SearchResult: 2 queries, k=3, 1/1 shards>"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vectors": None}, "vectors"),
        ({"texts": ["a"]}, "vectors"),
        ({"vectors": None, "texts": []}, "texts"),
        ({"k": -1}, "k"),
        ({"nprobe": 2.5}, "nprobe"),
        ({"oversample": "much"}, "oversample"),
        ({"min_coverage": float("nan")}, "min_coverage"),
        ({"oversample": 1e39}, "oversample"),
        ({"min_coverage": 10**400}, "min_coverage"),
        ({"consistency_token": "text"}, "consistency_token"),
        ({"exact": "no"}, "exact"),
        ({"with_payload": None}, "with_payload"),
        ({"with_vector": np.ones(2)}, "with_vector"),
        ({"filter": {"a": {"$gt": "z"}}}, "filter.a.$gt"),
    ],
)
def test_a_search_that_cannot_be_sent(changes: dict[str, Any], field: str) -> None:
    fine: dict[str, Any] = {
        "vectors": [[1.0]], "texts": None, "k": 1, "nprobe": 0, "oversample": 0, "exact": False, "with_payload": False,
        "with_vector": False, "min_coverage": 0, "consistency_token": b"",
    }  # fmt: skip
    with pytest.raises(errors.InvalidRequest) as caught:
        codec.search("c", **{**fine, **changes})
    assert caught.value.field == field


def test_a_get_surely_fits_a_message() -> None:
    calls = list(codec.get("c", range(1_200), True))
    assert [len(call.request.ids) for call in calls] == [500, 500, 200]
    assert all(call.request.with_vector for call in calls)
    assert [len(call.request.ids) for call in codec.delete("c", range(10_001))] == [10_000, 1]
