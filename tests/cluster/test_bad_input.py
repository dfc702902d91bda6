"""Every bad input is refused with its reason and the field at fault, and leaves no trace.

Each case is sent as raw messages, as any gRPC client might; those that the Python client can express are sent through
it, too. Around each case the collection's points are compared, bit by bit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

import vectorfleet
from vectorfleet import errors, limits
from vectorfleet.local import LocalCluster
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    point_service_pb2,
    point_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    types_pb2,
)

DIM = 3
HERE, COSINE = "HERE", "COSINE"
NAN, INF = float("nan"), float("inf")


def packed(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


FINE = packed(1, 2, 3)


@dataclass(frozen=True)
class Case:
    """A request that must be refused. HERE and COSINE stand for the names of the two collections."""

    name: str
    method: str
    request: Any
    reason: str
    field: str
    through_client: Callable[[vectorfleet.Client, str, str], Any] | None = field(default=None)


def search(name: str, reason: str, at: str, client: Any = None, *, into: str = HERE, **request: Any) -> Case:
    request.setdefault("queries", [search_service_pb2.Query(vector=FINE)])
    return Case(name, "Search", search_service_pb2.SearchRequest(collection=into, **request), reason, at, client)


def query(name: str, reason: str, form: dict[str, Any], client: Any = None, *, into: str = HERE) -> Case:
    queries = [search_service_pb2.Query(vector=FINE), search_service_pb2.Query(**form)]
    at = f"queries[1].{next(iter(form), 'vector')}"
    return search(name, reason, at, client, into=into, queries=queries)


def point(name: str, reason: str, part: str, client: Any = None, /, *, into: str = HERE, **bad: Any) -> Case:
    points = [
        point_service_pb2.PointInput(id="fine", vector=FINE),
        point_service_pb2.PointInput(
            **{"id": "bad", **({} if "values" in bad or "text" in bad else {"vector": FINE}), **bad}
        ),
    ]
    request = point_service_pb2.UpsertRequest(collection=into, points=points)
    return Case(name, "Upsert", request, reason, f"points[1].{part}", client)


def rows(name: str, reason: str, at: str, *, into: str = HERE, **changes: Any) -> Case:
    good = {"ids": ["fine", "bad"], "vectors": FINE + FINE}
    request = point_service_pb2.UpsertRequest(
        collection=into, packed=point_service_pb2.PackedPoints(**{**good, **changes})
    )
    return Case(f"packed: {name}", "Upsert", request, reason, at)


def create(name: str, reason: str, at: str, client: Any = None, /, **spec: Any) -> Case:
    request = collection_service_pb2.CreateCollectionRequest(
        spec=types_pb2.CollectionSpec(**{"name": "never-made", "dim": DIM, **spec})
    )
    return Case(f"create: {name}", "CreateCollection", request, reason, at, client)


LONG_ID = "é" * 128 + "x"  # 129 characters, 257 bytes
BIG_PAYLOAD = json.dumps({"a": "x" * limits.PAYLOAD_BYTES_MAX}).encode()
_index = types_pb2.IndexSpec

CASES = [
    # Vectors.
    query(
        "wrong dimension", "WRONG_DIMENSION", {"vector": packed(1, 2)}, lambda c, n, _: c.search(n, vectors=[[1, 2]])
    ),
    query("not even float32", "WRONG_DIMENSION", {"vector": b"12345"}),
    query("values of wrong dimension", "WRONG_DIMENSION", {"values": {"values": [1, 2, 3, 4]}}),
    query("NaN", "NOT_FINITE", {"vector": packed(1, NAN, 3)}, lambda c, n, _: c.search(n, vectors=[[1, NAN, 3]])),
    query(
        "infinity", "NOT_FINITE", {"vector": packed(1, 2, -INF)}, lambda c, n, _: c.search(n, vectors=[[1, 2, -INF]])
    ),
    query("values with infinity", "NOT_FINITE", {"values": {"values": [1, 2, INF]}}),
    query("no query at all", "INVALID_FIELD", {}),
    query(
        "zero vector",
        "ZERO_VECTOR",
        {"vector": packed(0, 0, 0)},
        lambda c, _, n: c.search(n, vectors=[[0, 0, 0]]),
        into=COSINE,
    ),
    query(
        "text without a model", "NO_EMBEDDING_MODEL", {"text": "hello"}, lambda c, n, _: c.search(n, texts=["hello"])
    ),
    point(
        "wrong dimension",
        "WRONG_DIMENSION",
        "vector",
        lambda c, n, _: c.upsert(n, ids=["a"], vectors=[[1, 2]]),
        vector=packed(1),
    ),
    point(
        "NaN",
        "NOT_FINITE",
        "vector",
        lambda c, n, _: c.upsert(n, ids=["a"], vectors=[[1, NAN, 2]]),
        vector=packed(1, 2, NAN),
    ),
    point("infinity", "NOT_FINITE", "values", values={"values": [1, INF, 2]}),
    point(
        "zero vector",
        "ZERO_VECTOR",
        "vector",
        lambda c, _, n: c.upsert(n, ids=["a"], vectors=[[0, 0, 0]]),
        into=COSINE,
        vector=packed(0, 0, 0),
    ),
    point(
        "text without a model",
        "NO_EMBEDDING_MODEL",
        "text",
        lambda c, n, _: c.upsert(n, ids=["a"], texts=["hello"]),
        text="hello",
    ),
    point("no vector", "INVALID_FIELD", "vector", vector=b""),
    rows("wrong dimension", "WRONG_DIMENSION", "packed.vectors", vectors=FINE + b"1234"),
    rows("NaN", "NOT_FINITE", "packed.vectors[1]", vectors=FINE + packed(1, NAN, 3)),
    rows("zero vector", "ZERO_VECTOR", "packed.vectors[1]", into=COSINE, vectors=FINE + packed(0, 0, 0)),
    # Ids and payloads.
    point(
        "id of 257 bytes",
        "INVALID_ID",
        "id",
        lambda c, n, _: c.upsert(n, ids=[LONG_ID], vectors=[[1, 2, 3]]),
        id=LONG_ID,
    ),
    point("empty id", "INVALID_ID", "id", lambda c, n, _: c.upsert(n, ids=[""], vectors=[[1, 2, 3]]), id=""),
    point(
        "payload over the limit",
        "PAYLOAD_TOO_LARGE",
        "payload",
        lambda c, n, _: c.upsert(n, ids=["a"], vectors=[[1, 2, 3]], payloads=[json.loads(BIG_PAYLOAD)]),
        payload=BIG_PAYLOAD,
    ),
    point("payload is no JSON", "INVALID_PAYLOAD", "payload", payload=b"{'a': 1}"),
    point("payload is no object", "INVALID_PAYLOAD", "payload", payload=b"[1]"),
    point("payload is no UTF-8", "INVALID_PAYLOAD", "payload", payload=b'{"a": "\xff"}'),
    point("payload with NaN", "INVALID_PAYLOAD", "payload", payload=b'{"a": NaN}'),
    point(
        "payload nested without end",
        "INVALID_PAYLOAD",
        "payload",
        payload=b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    ),
    rows("id of 257 bytes", "INVALID_ID", "packed.ids[1]", ids=["fine", LONG_ID]),
    rows("payload over the limit", "PAYLOAD_TOO_LARGE", "packed.payloads[1]", payloads=[b"", BIG_PAYLOAD]),
    rows("payloads do not match", "INVALID_FIELD", "packed.payloads", payloads=[b"{}"]),
    Case(
        "get: empty id",
        "Get",
        point_service_pb2.GetRequest(collection=HERE, ids=["a", ""]),
        "INVALID_ID",
        "ids[1]",
        lambda c, n, _: c.get(n, ids=[""]),
    ),
    Case(
        "delete: long id",
        "Delete",
        point_service_pb2.DeleteRequest(collection=HERE, ids=["fine", LONG_ID]),
        "INVALID_ID",
        "ids[1]",
        lambda c, n, _: c.delete(n, ids=[LONG_ID]),
    ),
    # Counts and numbers.
    search("k = 0", "INVALID_FIELD", "k", lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], k=0), k=0),
    search(
        "k above the limit",
        "INVALID_FIELD",
        "k",
        lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], k=10_001),
        k=limits.K_MAX + 1,
    ),
    search(
        "no queries",
        "INVALID_FIELD",
        "queries",
        lambda c, n, _: c.search(n, vectors=np.empty((0, 3), np.float32)),
        queries=[],
    ),
    search("1,025 queries", "INVALID_FIELD", "queries", queries=[search_service_pb2.Query(vector=FINE)] * 1025),
    search("nprobe above the limit", "INVALID_FIELD", "params.nprobe", params={"nprobe": limits.NPROBE_MAX + 1}),
    search(
        "oversample below 1",
        "INVALID_FIELD",
        "params.oversample",
        lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], oversample=0.5),
        params={"oversample": 0.5},
    ),
    search("oversample is NaN", "INVALID_FIELD", "params.oversample", params={"oversample": NAN}),
    search(
        "coverage above 1",
        "INVALID_FIELD",
        "min_coverage",
        lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], min_coverage=1.5),
        min_coverage=1.5,
    ),
    search("coverage is NaN", "INVALID_FIELD", "min_coverage", min_coverage=NAN),
    search(
        "an empty filter",
        "INVALID_FILTER",
        "filter",
        lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], filter={}),
        filter=types_pb2.Filter(),
    ),
    search(
        "a bound that is no number",
        "INVALID_FILTER",
        "filter.any_of.filters[0].field.range.gt",
        lambda c, n, _: c.search(n, vectors=[[1, 2, 3]], filter={"a": {"$gt": "z"}}),
        filter=types_pb2.Filter(any_of={"filters": [{"field": {"path": "a", "range": {"gt": {"string_value": "z"}}}}]}),
    ),
    search("a token that is none", "INVALID_FIELD", "consistency_token", consistency_token=b"\xff\x00made up"),
    Case("no points", "Upsert", point_service_pb2.UpsertRequest(collection=HERE), "INVALID_FIELD", "points"),
    Case(
        "10,001 ids",
        "Delete",
        point_service_pb2.DeleteRequest(collection=HERE, ids=["fine"] * 10_001),
        "INVALID_FIELD",
        "ids",
    ),
    Case("no ids", "Get", point_service_pb2.GetRequest(collection=HERE), "INVALID_FIELD", "ids"),
    Case(
        "page size",
        "Scroll",
        point_service_pb2.ScrollRequest(collection=HERE, page_size=10_001),
        "INVALID_FIELD",
        "page_size",
    ),
    Case(
        "page token",
        "Scroll",
        point_service_pb2.ScrollRequest(collection=HERE, page_token="?"),  # noqa: S106
        "INVALID_FIELD",
        "page_token",
    ),
    # Collections.
    Case("no name", "Count", point_service_pb2.CountRequest(), "INVALID_FIELD", "collection"),
    search(
        "unknown collection",
        "COLLECTION_NOT_FOUND",
        "",
        lambda c, *_: c.search("nowhere", vectors=[[1, 2, 3]]),
        into="nowhere",
    ),
    Case(
        "unknown collection: count",
        "Count",
        point_service_pb2.CountRequest(collection="nowhere"),
        "COLLECTION_NOT_FOUND",
        "",
        lambda c, *_: c.count("nowhere"),
    ),
    Case(
        "unknown collection: delete it",
        "DeleteCollection",
        collection_service_pb2.DeleteCollectionRequest(name="nowhere"),
        "COLLECTION_NOT_FOUND",
        "",
        lambda c, *_: c.delete_collection("nowhere"),
    ),
    create("exists", "COLLECTION_EXISTS", "", lambda c, n, _: c.create_collection(n, dim=DIM), name=HERE),
    create(
        "m does not divide",
        "INVALID_FIELD",
        "spec.index.m",
        lambda c, *_: c.create_collection("never-made", dim=10, index=vectorfleet.IndexOptions(m=3)),
        dim=10,
        index=_index(m=3),
    ),
    create(
        "dimension 4,097",
        "INVALID_FIELD",
        "spec.dim",
        lambda c, *_: c.create_collection("never-made", dim=4097),
        dim=4097,
    ),
    create("no dimension", "INVALID_FIELD", "spec.dim", lambda c, *_: c.create_collection("never-made"), dim=0),
    create("bad name", "INVALID_FIELD", "spec.name", lambda c, *_: c.create_collection("../etc", dim=2), name="../etc"),
    create("long name", "INVALID_FIELD", "spec.name", name="n" * 129),
    create(
        "1,025 shards",
        "INVALID_FIELD",
        "spec.shards",
        lambda c, *_: c.create_collection("never-made", dim=2, shards=1025),
        shards=1025,
    ),
    create("2 replicas", "INVALID_FIELD", "spec.replicas", replicas=2),
    create("unknown metric", "INVALID_FIELD", "spec.metric", metric=77),
    create("too few to train", "INVALID_FIELD", "spec.index.train_points", index=_index(train_points=255)),
    create("too many lists", "INVALID_FIELD", "spec.index.nlist", index=_index(nlist=limits.NLIST_MAX + 1)),
    create(
        "flat, yet with lists", "INVALID_FIELD", "spec.index", index=_index(kind=types_pb2.INDEX_KIND_FLAT, nlist=16)
    ),
    create("no such model", "EMBEDDING_MODEL_UNAVAILABLE", "", embedding_model="/no/such/model", dim=0),
]


@pytest.fixture
def collections(client: vectorfleet.Client, new_name: Callable[[], str]) -> Iterator[tuple[str, str]]:
    """Two small collections, L2 and COSINE; afterwards both hold what they held."""
    names = new_name(), new_name()
    for name, metric in zip(names, ("l2", "cosine"), strict=True):
        client.create_collection(name, dim=DIM, metric=metric, shards=2)
        client.upsert(name, ids=["fine", "other"], vectors=[[7, 7, 7], [8, 8, 8]], payloads=[{"a": 1}, None])
    before = [_contents(client, name) for name in names]
    collections_before = {one.name for one in client.list_collections()}
    yield names
    assert [_contents(client, name) for name in names] == before, "a refused request changed something"
    assert "never-made" not in {one.name for one in client.list_collections()} - collections_before


def _contents(client: vectorfleet.Client, name: str) -> list[Any]:
    walked = [(p.id, p.vector.tobytes(), p.payload, p.version) for p in client.scroll(name, with_vector=True)]
    return [client.count(name), walked]


@pytest.fixture(scope="session")
def channel(cluster: LocalCluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.address, options=CHANNEL_OPTIONS) as one:
        yield one


def call(channel: grpc.Channel, method: str, request: Any) -> Any:
    stubs = (
        search_service_pb2_grpc.SearchServiceStub(channel),
        point_service_pb2_grpc.PointServiceStub(channel),
        collection_service_pb2_grpc.CollectionServiceStub(channel),
    )
    (stub,) = (stub for stub in stubs if hasattr(stub, method))
    return getattr(stub, method)(request, timeout=60)


def addressed(request: Any, names: tuple[str, str]) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    if hasattr(copy, "collection") and copy.collection in (HERE, COSINE):
        copy.collection = names[copy.collection == COSINE]
    if hasattr(copy, "spec") and copy.spec.name == HERE:
        copy.spec.name = names[0]
    return copy


def refused(channel: grpc.Channel, method: str, request: Any) -> errors.VectorfleetError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request)
    return errors.from_rpc_error(caught.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method}: {case.name}")
def test_bad_input_is_refused(
    client: vectorfleet.Client, channel: grpc.Channel, collections: tuple[str, str], case: Case
) -> None:
    error = refused(channel, case.method, addressed(case.request, collections))
    assert (error.reason, error.field) == (case.reason, case.field), error
    assert error.code is errors.REASONS[case.reason].code
    assert error.message
    if case.through_client is not None:
        with pytest.raises(vectorfleet.VectorfleetError) as caught:
            case.through_client(client, *collections)
        assert caught.value.reason == case.reason
        assert type(caught.value) is type(error)


def test_invalid_utf8_is_refused_with_its_field(channel: grpc.Channel, collections: tuple[str, str]) -> None:
    points = [point_service_pb2.PointInput(id=name, vector=FINE) for name in ("good", "QQQQ")]
    good = point_service_pb2.UpsertRequest(collection=collections[0], points=points)
    raw = good.SerializeToString().replace(b"QQQQ", b"Q\xff\xfeQ")
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/vectorfleet.v1.PointService/Upsert")(raw, timeout=30)
    error = errors.from_rpc_error(caught.value)
    assert (error.reason, error.field) == ("INVALID_ID", "points[1].id")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x50abc", bytes(range(256))])
@pytest.mark.parametrize(
    "method", ["PointService/Upsert", "SearchService/Search", "CollectionService/CreateCollection"]
)
def test_garbage_is_refused(channel: grpc.Channel, collections: tuple[str, str], method: str, garbage: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/vectorfleet.v1.{method}")(garbage, timeout=30)
    assert errors.from_rpc_error(caught.value).reason == "INVALID_FIELD"


def test_a_message_above_the_limit_is_refused(cluster: LocalCluster, collections: tuple[str, str]) -> None:
    # 10,000 rows of 1,800 floats: 72 MB. A channel of ours would refuse to send it; this one sends it.
    options = [("grpc.max_send_message_length", -1)]
    packed_points = point_service_pb2.PackedPoints(ids=["a"], vectors=bytes(limits.MESSAGE_BYTES_MAX + 1))
    request = point_service_pb2.UpsertRequest(collection=collections[0], packed=packed_points)
    with grpc.insecure_channel(cluster.address, options=options) as wide:
        assert refused(wide, "Upsert", request).reason == "MESSAGE_TOO_LARGE"
    with grpc.insecure_channel(cluster.address, options=CHANNEL_OPTIONS) as ours:
        assert refused(ours, "Upsert", request).reason == "MESSAGE_TOO_LARGE"


def test_an_answer_above_the_limit_is_refused(
    client: vectorfleet.Client, new_name: Callable[[], str], rng: np.random.Generator
) -> None:
    name = new_name()
    client.create_collection(name, dim=2048, shards=2)
    vectors = rng.standard_normal((120, 2048)).astype(np.float32)
    client.upsert(name, ids=list(range(120)), vectors=vectors)
    with pytest.raises(vectorfleet.ResourceExhausted) as caught:
        client.search(name, vectors=vectors[:100], k=100, with_vector=True)
    assert caught.value.reason == "RESPONSE_TOO_LARGE"
    assert client.search(name, vectors=vectors[:100], k=100).ids.shape == (100, 100)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/vectorfleet.v1.SearchService/Guess")(b"", timeout=30)
    assert errors.from_rpc_error(caught.value).reason == "UNIMPLEMENTED"
