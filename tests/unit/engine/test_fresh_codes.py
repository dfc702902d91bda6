"""What was just written is searched through codes, too, and is not given lists before writes pause."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shard_server.engine import comparing, index, search
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import OpenReplica, codebook_for, delete, settle, upsert
from tests.unit.engine.test_replica import vectors
from vectorfleet.v1 import types_pb2

SETTINGS = EngineSettings(seal_points=4096)
METRICS = [types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE]
FAST_SCAN = types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN


def with_codebook(open_replica: OpenReplica, metric: int, kind: int = FAST_SCAN) -> Replica:
    replica = open_replica(metric=metric, kind=kind, settings=SETTINGS)
    replica.commit([upsert({f"first-{name}": vector for name, vector in vectors(1100).items()})], term=1)
    replica.use_codebook(codebook_for(replica))
    settle(replica)
    return replica


def write(replica: Replica, points: dict[str, NDArray[np.float32]], size: int = 500) -> None:
    items = list(points.items())
    for first in range(0, len(items), size):
        replica.commit([upsert(dict(items[first : first + size]))], term=1)


def compared_rows(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that one approximate search compares one by one, not counting candidates."""
    compared = 0
    nearest = comparing.nearest_rows

    def counting(queries: index.Matrix, rows: index.Matrix, *others: object) -> object:
        nonlocal compared
        compared += len(rows)
        return nearest(queries, rows, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "nearest_rows", counting)
        replica.search(np.zeros((2, 8), np.float32) + 0.1, 5)
    return compared


@pytest.mark.parametrize("metric", METRICS)
def test_of_a_buffer_only_the_newest_rows_are_compared_one_by_one(
    open_replica: OpenReplica, metric: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, metric)
    points = vectors(3900)
    write(replica, points)
    assert replica.stats().buffered_points == 3900
    assert compared_rows(replica, monkeypatch) < 1024 + 500
    gone = [name for position, name in enumerate(points) if position % 7 == 0]
    replica.commit([delete(*gone)], term=1)
    left = {name: vector for name, vector in points.items() if name not in set(gone)}
    queries = np.stack(list(left.values())[::40])
    exact = replica.search(queries, 5, exact=True)
    found = replica.search(queries, 5, nprobe=8, oversample=400)
    assert found.ids == exact.ids
    assert np.array_equal(found.scores, exact.scores)
    assert not set(found.ids) & set(gone)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_sealed_while_writes_go_on_gets_lists_in_a_pause(
    open_replica: OpenReplica, metric: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, metric)
    points = vectors(4200)
    write(replica, points)
    with monkeypatch.context() as patch:
        patch.setattr(index, "encode", lambda *_: pytest.fail("no lists while writes go on"))
        assert replica.seal(0.0)
        write(replica, {f"later-{name}": vector for name, vector in list(points.items())[:100]})
        replica.improve(0.0)
    assert [part.segment.has_lists for part in replica._state.segments] == [True, False]
    assert compared_rows(replica, monkeypatch) == 100
    queries = np.stack(list(points.values())[::40])
    exact = replica.search(queries, 5, exact=True)
    assert replica.search(queries, 5, nprobe=8, oversample=500).ids == exact.ids
    assert not replica.settled
    settle(replica, 10_000.0)
    assert all(part.segment.has_lists for part in replica._state.segments if part.segment.rows >= 1024)
    assert replica.search(queries, 5, nprobe=8, oversample=500).ids == exact.ids


def test_sealing_takes_the_codes_that_the_buffer_has(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2)
    write(replica, vectors(4200))
    encoded = 0
    add = index._add

    def counting(target: object, chunks: object) -> None:
        nonlocal encoded
        chunks = list(chunks)  # type: ignore[call-overload]
        encoded += sum(map(len, chunks))
        add(target, chunks)

    monkeypatch.setattr(index, "_add", counting)
    assert replica.seal(0.0)
    assert encoded < 1024 + 500
    assert replica._state.segments[-1].segment.rows == 4200


def test_young_segments_come_back_after_a_restart_as_they_were(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2)
    codebook = replica._state.codebook
    points = vectors(4200)
    write(replica, points)
    assert replica.seal(0.0)
    replica.close()
    again = open_replica(settings=SETTINGS, codebook=codebook)
    assert [part.segment.has_lists for part in again._state.segments] == [True, False]
    assert compared_rows(again, monkeypatch) == 0
    settle(again)
    queries = np.stack(list(points.values())[::40])
    assert again.search(queries, 1, nprobe=8, oversample=100).ids == list(points)[::40]


def test_a_new_codebook_gives_a_buffer_new_codes(open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2)
    points = vectors(2600)
    items = list(points.items())
    write(replica, dict(items[:2500]))
    replica.use_codebook(codebook_for(replica, version=2))
    assert set(replica._state.codebooks) == {1, 2}
    write(replica, dict(items[2500:]))
    assert compared_rows(replica, monkeypatch) < 1024
    assert replica._state.active.codes is not None
    assert replica._state.active.codes.codebook.version == 2
    queries = np.stack(list(points.values())[::40])
    assert replica.search(queries, 1, nprobe=8, oversample=100).ids == list(points)[::40]


def test_codes_without_lists_are_for_fast_scan_alone(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2, types_pb2.INDEX_KIND_IVF_PQ)
    write(replica, vectors(4200))
    assert compared_rows(replica, monkeypatch) == 4200
    assert replica.seal(0.0)
    assert [part.segment.has_lists for part in replica._state.segments] == [True, True]


def test_no_row_is_answered_twice_where_few_of_a_buffer_are_left(open_replica: OpenReplica) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2)
    points = vectors(3900)
    write(replica, points)
    left = list(points)[::50]
    replica.commit([delete(*(name for name in points if name not in set(left)))], term=1)
    queries = np.stack([points[name] for name in left[::5]])
    found = replica.search(queries, 20, nprobe=8, oversample=100)
    assert found.ids == replica.search(queries, 20, exact=True).ids
    assert all(len(set(found.ids[first : first + 20])) == 20 for first in range(0, len(found.ids), 20))


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_COSINE])
def test_what_was_just_written_is_found_by_itself(open_replica: OpenReplica, metric: int) -> None:
    replica = open_replica(dim=32, metric=metric, settings=EngineSettings(seal_points=32_768))
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((22_000, 32), np.float32)
    # Every other one is one of 88 near copies, which have much the same codes.
    rows[1::2] = np.float32(0.05) * rows[1::2] + rows[np.arange(11_000) % 125 * 2]
    points = {f"{number:05d}": row for number, row in enumerate(rows)}
    names = list(points)
    write(replica, {name: points[name] for name in names[:2000]}, size=2000)
    replica.use_codebook(codebook_for(replica, nlist=64, m=16))
    settle(replica)
    write(replica, {name: points[name] for name in names[2000:]}, size=1000)
    buffer = replica._state.active
    assert buffer.rows == 20_000
    assert buffer.codes is not None
    newest = names[-4000::8][:250] + names[-3999::8][:250]
    assert 18_000 < buffer.codes.index.rows < 20_000, "some of those asked for have codes, the last have none"
    for k in (1, 10):
        assert replica.search(np.stack([points[name] for name in newest]), k).ids[::k] == newest


@pytest.mark.parametrize("way", ["through codes", "one by one"])
def test_a_filter_is_kept_by_the_codes_of_a_buffer(
    open_replica: OpenReplica, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = with_codebook(open_replica, types_pb2.METRIC_L2)
    points = vectors(3900)
    payloads = {name: b'{"part": %d}' % (int(name) % 5) for name in points}
    for first in range(0, 3900, 500):
        some = dict(list(points.items())[first : first + 500])
        replica.commit([upsert(some, payloads)], term=1)
    replica.commit([delete(*list(points)[::7])], term=1)
    if way == "through codes":
        monkeypatch.setattr(search, "EXACT_BYTES", 780 * 8 * 4 // 2)
    wanted = types_pb2.Filter(field={"path": "part", "equals": {"values": [{"int_value": 3}]}})
    left = [name for name in list(points)[3::5] if int(name) % 7]
    queries = np.stack([points[name] for name in list(points)[::50]])
    exact = replica.search(queries, 5, exact=True, wanted=wanted)
    assert exact.matching == len(left)
    assert set(exact.ids) <= set(left)
    compared = []
    nearest = comparing.nearest_rows
    monkeypatch.setattr(comparing, "nearest_rows", lambda *args: compared.append(len(args[1])) or nearest(*args))
    found = replica.search(queries, 5, oversample=150, wanted=wanted)
    assert found.ids == exact.ids
    assert (sum(compared) < 1500) == (way == "through codes")
