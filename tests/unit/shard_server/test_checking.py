"""What a node lets into a log, and what it searches for: each fault is refused with its field."""

from __future__ import annotations

import numpy as np
import pytest

from shard_server import checking
from vectorfleet import limits
from vectorfleet.cluster.placement import hash_ranges, point_hash
from vectorfleet.cluster.shard_map import CollectionRecord, IndexConfig, ShardAssignment
from vectorfleet.errors import InvalidRequest
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

NAN, INF = float("nan"), float("inf")
HALF = ShardAssignment(0, *hash_ranges(2)[0])
HERE = [name for name in map(str, range(100)) if point_hash(name) <= HALF.hash_last]
ELSEWHERE = [name for name in map(str, range(100)) if point_hash(name) > HALF.hash_last]


def record(metric: int = types_pb2.METRIC_L2) -> CollectionRecord:
    index = IndexConfig(kind=types_pb2.INDEX_KIND_FLAT, nlist=0, m=0, train_points=10_000)
    return CollectionRecord("c", "u", 2, metric, (HALF,), 1, index, "", 0)


def packed(*rows: tuple[float, float]) -> bytes:
    return np.array(rows, np.float32).tobytes()


def upsert(ids: list[str], vectors: bytes, payloads: list[bytes] | None = None) -> storage_pb2.Mutation:
    batch = storage_pb2.UpsertBatch(ids=ids, vectors=vectors, payloads=payloads or [])
    return storage_pb2.Mutation(upsert=batch)


def delete(*ids: str) -> storage_pb2.Mutation:
    return storage_pb2.Mutation(delete=storage_pb2.DeleteBatch(ids=ids))


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_COSINE])
def test_a_sound_write_is_let_in(metric: int) -> None:
    checking.check_mutation(upsert(HERE[:2], packed((1, 2), (3e17, 0)), [b"{}", b""]), record(metric), HALF)
    checking.check_mutation(delete(*HERE), record(metric), HALF)


@pytest.mark.parametrize(
    ("mutation", "reason", "field"),
    [
        (storage_pb2.Mutation(), "INVALID_FIELD", "mutation"),
        (delete(), "INVALID_FIELD", "mutation.delete.ids"),
        (delete(HERE[0], HERE[0]), "INVALID_ID", "mutation.delete.ids"),
        (delete(HERE[0], ELSEWHERE[0]), "INVALID_ID", "mutation.delete.ids[1]"),
        (delete(*(["x"] * 10_001)), "INVALID_FIELD", "mutation.delete.ids"),
        (upsert([HERE[0]] * 2, packed((1, 2), (3, 4))), "INVALID_ID", "mutation.upsert.ids"),
        (upsert([ELSEWHERE[0]], packed((1, 2))), "INVALID_ID", "mutation.upsert.ids[0]"),
        (upsert([""], packed((1, 2))), "INVALID_ID", "mutation.upsert.ids[0]"),
        (upsert(["é" * 129], packed((1, 2))), "INVALID_ID", "mutation.upsert.ids[0]"),
        (upsert(HERE[:2], packed((1, 2))), "WRONG_DIMENSION", "mutation.upsert.vectors"),
        (upsert(HERE[:1], packed((1, NAN))), "NOT_FINITE", "mutation.upsert.vectors"),
        (upsert(HERE[:1], packed((1, -INF))), "NOT_FINITE", "mutation.upsert.vectors"),
        (upsert(HERE[:1], packed((3e38, 0))), "NOT_FINITE", "mutation.upsert.vectors"),
        (upsert(HERE[:1], packed((0, 0))), "ZERO_VECTOR", "mutation.upsert.vectors"),
        (upsert(HERE[:1], packed((1, 2)), [b"", b""]), "INVALID_FIELD", "mutation.upsert.payloads"),
        (
            upsert(HERE[:1], packed((1, 2)), [b"x" * (limits.PAYLOAD_BYTES_MAX + 1)]),
            "PAYLOAD_TOO_LARGE",
            "mutation.upsert.payloads",
        ),
    ],
)
def test_a_faulty_write_is_refused(mutation: storage_pb2.Mutation, reason: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checking.check_mutation(mutation, record(types_pb2.METRIC_COSINE), HALF)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query_count": 0}, "query_count"),
        ({"k": 0}, "k"),
        ({"k": limits.K_MAX + 1}, "k"),
        ({"nprobe": limits.NPROBE_MAX + 1}, "nprobe"),
        ({"oversample": NAN}, "oversample"),
        ({"oversample": -1.0}, "oversample"),
        ({"oversample": INF}, "oversample"),
        ({"filter": types_pb2.Filter(all_of={})}, "filter.all_of.filters"),
        ({"targets": []}, "targets"),
        ({"targets": [pb.ShardTarget(shard=1), pb.ShardTarget(shard=1)]}, "targets"),
        ({"vectors": packed((1, 2), (3, 4))}, "vectors"),
        ({"vectors": packed((1, NAN))}, "vectors"),
    ],
)
def test_a_faulty_search_is_refused(change: dict[str, object], field: str) -> None:
    sound: dict[str, object] = {"query_count": 1, "k": 1, "targets": [pb.ShardTarget()], "vectors": packed((1, 2))}
    assert searched(sound).shape == (1, 2)
    with pytest.raises(InvalidRequest) as caught:
        searched({**sound, **change})
    assert caught.value.field == field


def searched(parts: dict[str, object]) -> np.ndarray:
    request = pb.SearchRequest(**parts)  # type: ignore[arg-type]
    checking.check_search(request)
    return checking.query_matrix(request, record())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"m": 0},
        {"m": limits.DIM_MAX + 1},
        {"nlist": limits.NLIST_MAX + 1},
        {"kind": types_pb2.INDEX_KIND_FLAT},
        {"kind": 77},
        {"sources": []},
        {"sources": [pb.SampleSource()] * (limits.SHARDS_MAX + 1)},
    ],
)
def test_a_training_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    sound: dict[str, object] = {"version": 1, "nlist": 4, "m": 2, "sources": [pb.SampleSource()]}
    checking.check_training(pb.TrainCodebookRequest(**sound))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        checking.check_training(pb.TrainCodebookRequest(**{**sound, **change}))  # type: ignore[arg-type]
