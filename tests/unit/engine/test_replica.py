"""One replica: encoding, snapshots, recovery, damage, compaction."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shard_server.engine import index, upkeep
from shard_server.engine.raw_vectors import RawVectors
from shard_server.engine.state import ReplicaState
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import SMALL, OpenReplica, codebook_for, delete, identity, maintain, settle, upsert
from vectorfleet.errors import DataLoss, Unavailable
from vectorfleet.v1 import types_pb2


def vectors(n: int, dim: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{number:05d}": vector for number, vector in enumerate(rng.standard_normal((n, dim), np.float32))}


def files_of(folder: Path, name: str) -> list[Path]:
    return sorted(folder.rglob(name))


@pytest.mark.parametrize("dim", [1, 2, 7, 127, 514])
@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE])
@pytest.mark.parametrize("kind", [types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, types_pb2.INDEX_KIND_IVF_PQ])
def test_encoded_segments_find_what_exact_search_finds(
    open_replica: OpenReplica, dim: int, metric: int, kind: int
) -> None:
    settings = EngineSettings(seal_points=1024)
    replica = open_replica(dim=dim, metric=metric, kind=kind, settings=settings)
    points = vectors(1100, dim)
    replica.commit([upsert(points)], term=1)
    replica.use_codebook(codebook_for(replica, nlist=4, m=-(-dim // 4)))
    settle(replica)
    assert replica.stats().codebook_version == 1
    assert replica.stats().index_bytes > 0
    queries = np.stack(list(points.values())[:5])
    exact = replica.search(queries, 10, exact=True)
    wide = replica.search(queries, 10, nprobe=4, oversample=110)
    if dim > 1 or metric != types_pb2.METRIC_COSINE:  # in one dimension all cosines are ties
        assert wide.ids == exact.ids
    assert wide.scores.tolist() == exact.scores.tolist()
    if metric != types_pb2.METRIC_DOT:
        assert wide.ids[::10] == list(points)[:5] or dim == 1


def test_a_reader_keeps_its_snapshot_while_segments_are_replaced(open_replica: OpenReplica) -> None:
    replica = open_replica()
    points = vectors(300)
    for first in range(0, 300, 50):
        replica.commit([upsert(dict(list(points.items())[first : first + 50]))], term=1)
        maintain(replica, first)
    view = replica._state.view
    names = [point_id.encode() for point_id in points]
    settle(replica)
    replica.commit([delete(*points)], term=1)
    settle(replica, 50_000)
    assert replica.stats().points == 0
    assert replica.stats().segments == 0
    found = view.vectors_of(names, [view.points.get(name).version for name in names])
    assert all(np.array_equal(vector, points[name.decode()]) for vector, name in zip(found, names, strict=True))


def test_a_search_that_began_before_a_new_codebook_ends_with_the_old_one(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica(settings=EngineSettings(seal_points=1024))
    points = vectors(1100)
    replica.commit([upsert(points)], term=1)
    replica.use_codebook(codebook_for(replica))
    settle(replica)
    view = replica._state.view
    queries = np.stack(list(points.values())[:5])
    before = replica.search(queries, 3)
    replica.use_codebook(codebook_for(replica, version=2))
    settle(replica, 50_000)
    assert [part.segment.codebook_version for part in replica._state.view.segments] == [2]
    monkeypatch.setattr(ReplicaState, "view", view)
    assert replica.search(queries, 3).ids == before.ids


def test_every_acknowledged_point_is_found_while_all_goes_on(open_replica: OpenReplica) -> None:
    replica = open_replica(settings=EngineSettings(seal_points=1100, seal_age_s=0.0, idle_s=0.0))
    points = vectors(6000)
    items = list(points.items())
    replica.commit([upsert(dict(items[:2000]))], term=1)
    acknowledged, faults, done = [2000], [], threading.Event()

    def write() -> None:
        for first in range(2000, 6000, 100):
            # New points, and an old one overwritten with the same vector: it must be found at every instant.
            replica.commit([upsert(dict(items[first : first + 100])), upsert(dict(items[:1]))], term=1)
            acknowledged[0] = first + 100
        done.set()

    def search() -> None:
        rng = np.random.default_rng(1)
        while not done.is_set():
            wanted = [0, *rng.integers(0, acknowledged[0], 8)]
            hits = replica.search(np.stack([items[number][1] for number in wanted]), 2, exact=True)
            found = [hits.ids[first] for first in np.cumsum(hits.counts) - hits.counts]
            if found != [items[number][0] for number in wanted]:
                faults.append((wanted, found))

    threads = [threading.Thread(target=target) for target in (write, search, search)]
    for thread in threads:
        thread.start()
    now_s = 0.0
    trained = False
    while not done.is_set():
        now_s += 1.0
        maintain(replica, now_s)
        if not trained and replica.stats().points > 3000:
            replica.use_codebook(codebook_for(replica))
            trained = True
    for thread in threads:
        thread.join()
    assert not faults
    settle(replica, now_s + 100)
    assert trained
    assert replica.stats().points == 6000
    assert replica.stats().indexed_points == 6000


def test_the_index_is_attached_again_after_a_restart_without_encoding(
    open_replica: OpenReplica, tmp_path: Path
) -> None:
    replica = open_replica(settings=EngineSettings(seal_points=1024))
    replica.commit([upsert(vectors(1100))], term=1)
    codebook = codebook_for(replica)
    replica.use_codebook(codebook)
    settle(replica)
    (index_file,) = files_of(tmp_path, "index-*")
    written = index_file.stat().st_mtime_ns
    replica.close()
    again = open_replica(settings=EngineSettings(seal_points=1024))
    assert again.stats().codebook_version == 0
    again.use_codebook(codebook)
    settle(again)
    assert again.stats().indexed_points == 1100
    assert index_file.stat().st_mtime_ns == written


def test_a_restart_before_all_is_encoded_again_searches_with_the_older_codebook(open_replica: OpenReplica) -> None:
    replica = open_replica(settings=EngineSettings(seal_points=1024))
    replica.commit([upsert(vectors(1100))], term=1)
    first, second = codebook_for(replica), codebook_for(replica, version=2)
    replica.use_codebook(first)
    settle(replica)
    replica.use_codebook(second)
    assert replica.codebooks_in_use == {1}
    replica.close()
    again = open_replica(codebook=second, older=[first], settings=EngineSettings(seal_points=1024))
    assert [part.segment.codebook_version for part in again._state.view.segments] == [1]
    assert again.search(np.stack([vectors(1100)["00007"]]), 1).ids == ["00007"]
    settle(again, 50_000)
    assert again.codebooks_in_use == {2}


def test_a_damaged_index_is_built_again(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica(settings=EngineSettings(seal_points=1024))
    points = vectors(1100)
    replica.commit([upsert(points)], term=1)
    codebook = codebook_for(replica)
    replica.use_codebook(codebook)
    settle(replica)
    replica.close()
    (index_file,) = files_of(tmp_path, "index-*")
    flip(index_file)
    again = open_replica(codebook=codebook, settings=EngineSettings(seal_points=1024))
    assert again.stats().indexed_points == 0
    assert again.search(np.stack([points["00007"]]), 1).ids == ["00007"]
    settle(again)
    assert again.stats().indexed_points == 1100


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_directory_of_another_replica_is_refused(open_replica: OpenReplica) -> None:
    open_replica(dim=8).close()
    with pytest.raises(DataLoss, match="is expected"):
        open_replica(dim=9)


def test_an_unknown_format_version_is_refused_plainly(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica()
    manifest = replica._state.next_manifest()
    manifest.format_version = 99
    batch = replica._state.store.batch()
    batch.put_manifest(manifest)
    batch.write(sync=True)
    replica.close()
    with pytest.raises(DataLoss, match="format version 99; this release reads version 1"):
        open_replica()


def test_a_closed_replica_says_so(open_replica: OpenReplica) -> None:
    replica = open_replica()
    replica.close()
    with pytest.raises(Unavailable, match="closed"):
        replica.search(np.zeros((1, 8), np.float32), 1)
    with pytest.raises(Unavailable, match="closed"):
        replica.commit([delete("a")], term=1)


def test_what_a_crash_left_half_made_is_removed(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(100))], term=1)
    settle(replica)
    replica.close()
    half_made = tmp_path / "replica" / "segments" / "77.building"
    half_made.mkdir()
    orphan = tmp_path / "replica" / "segments" / "78"
    orphan.mkdir()
    assert open_replica().stats().points == 100
    assert not half_made.exists()
    assert not orphan.exists()


def test_compaction_returns_disk_and_forgets_tombstones(open_replica: OpenReplica) -> None:
    replica = open_replica()
    points = vectors(1000)
    replica.commit([upsert(points)], term=1)
    settle(replica)
    before = replica.stats()
    replica.commit([delete(*list(points)[:900])], term=1)
    assert replica.stats().tombstones == 900
    settle(replica, 50_000)
    after = replica.stats()
    assert (after.points, after.tombstones) == (100, 0)
    assert after.disk_bytes < before.disk_bytes / 5
    assert list(replica._state.store.tombstones()) == []


def test_the_log_is_let_go_once_sealed(open_replica: OpenReplica) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(100)), delete("00001")], term=3)
    assert len(list(replica._state.store.log_after(0))) == 2
    settle(replica)
    assert list(replica._state.store.log_after(0)) == []
    replica.close()
    again = open_replica()
    assert again.applied_seqno == 101
    assert again.term == 3


def test_a_crash_between_log_and_apply_loses_nothing(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    points = vectors(30)
    replica.commit([upsert(points)], term=1)
    monkeypatch.setattr(ReplicaState, "apply", lambda self, entries: [])
    replica.commit([upsert({"00003": np.ones(8, np.float32), "new": np.ones(8, np.float32)}), delete("00004")], term=1)
    monkeypatch.undo()
    replica.close()
    again = open_replica()
    assert again.stats().points == 30
    assert again.search(np.ones((1, 8), np.float32), 2, exact=True).ids == ["00003", "new"]
    assert [point.id for point in again.fetch(["00003", "00004", "00005"], with_vector=False)] == ["00003", "00005"]


def test_a_sample_is_of_live_points_and_repeats_with_its_seed(open_replica: OpenReplica) -> None:
    replica = open_replica()
    points = vectors(200)
    replica.commit([upsert(points)], term=1)
    settle(replica)
    replica.commit([delete(*list(points)[::2]), upsert(vectors(10, seed=9))], term=1)
    sample = replica.sample(1000, seed=4)
    assert len(sample) == replica.stats().points
    live = {point.vector for point in replica.scan("", 1000, with_vector=True)[0]}
    assert {row.tobytes() for row in sample} == live
    assert np.array_equal(replica.sample(20, seed=4), replica.sample(20, seed=4))
    assert not np.array_equal(replica.sample(20, seed=4), replica.sample(20, seed=5))


def test_writers_wait_for_a_sealing_that_is_behind(open_replica: OpenReplica) -> None:
    replica = open_replica(settings=replace(SMALL, seal_points=10))
    replica.commit([upsert(vectors(80))], term=1)
    late = threading.Thread(target=lambda: replica.commit([upsert({"late": np.ones(8, np.float32)})], term=1))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    while late.is_alive():
        maintain(replica, 0.0)
        late.join(0.01)
    assert replica.stats().points == 81


def test_open_files_and_mappings_do_not_pile_up(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica()
    for round_number in range(30):
        replica.commit([upsert(vectors(70, seed=round_number))], term=1)
        settle(replica, 1000.0 * (round_number + 1))
    with Path(f"/proc/{os.getpid()}/maps").open() as maps:
        mapped = {line.split()[-1] for line in maps if str(tmp_path) in line and "(deleted)" in line}
    assert len(mapped) == 0


def test_identity_is_part_of_the_data(open_replica: OpenReplica) -> None:
    assert open_replica(dim=3).identity == identity(3)


@pytest.mark.parametrize("kind", [types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, types_pb2.INDEX_KIND_IVF_PQ])
def test_encoded_segments_are_joined_without_their_dead_rows_coming_back(
    open_replica: OpenReplica, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica(kind=kind, settings=EngineSettings(seal_points=1024))
    points = vectors(3600)
    items = list(points.items())
    replica.commit([upsert(dict(items[:1200]))], term=1)
    codebook = codebook_for(replica, nlist=16)
    replica.use_codebook(codebook)
    for first in range(0, 3600, 1200):
        replica.commit([upsert(dict(items[first : first + 1200]))], term=1)
        assert maintain(replica, first)
    dead = [name for name, _ in items[::50]]
    replica.commit([delete(*dead)], term=1)
    now_s = 80_000.0
    while not all(part.segment.has_lists for part in replica._state.segments):
        assert replica.improve(now_s := now_s + 10) or now_s < 80_020
    assert replica.stats().segments == 3
    monkeypatch.setattr(index, "encode", lambda *_: pytest.fail("joining must not encode again"))
    settle(replica, 90_000)
    assert replica.stats().segments == 1
    assert replica.stats().indexed_points == replica.stats().points == 3600 - len(dead)
    queries = np.stack([vector for _, vector in items[:200]])
    exact = replica.search(queries, 5, exact=True)
    assert replica.search(queries, 5, nprobe=16, oversample=500).ids == exact.ids
    assert not set(exact.ids) & set(dead)


def test_a_segment_index_does_not_repeat_the_centroids(open_replica: OpenReplica) -> None:
    dim, nlist = 512, 256
    replica = open_replica(dim=dim, settings=EngineSettings(seal_points=1024))
    replica.commit([upsert(vectors(1100, dim))], term=1)
    replica.use_codebook(codebook_for(replica, nlist=nlist, m=32))
    settle(replica)
    assert 0 < replica.stats().index_bytes < nlist * dim * 4


def test_what_writes_left_in_the_store_is_given_back_when_they_pause(open_replica: OpenReplica) -> None:
    settings = EngineSettings(seal_points=100_000)
    replica = open_replica(dim=1024, settings=settings)
    points = vectors(1000, 1024)
    payloads = {name: b'{"a":"%s"}' % os.urandom(2048).hex().encode() for name in points}
    for now_s in (0.0, 1e5):
        replica.commit([upsert(points, payloads)], term=1)
        settle(replica, now_s)
        store = replica._state.store
        assert store.log_bytes < upkeep.SPARE_BYTES_MAX  # of 8 MiB
    size, stale = store.points_bytes(1000)
    assert size < 1.1 * 1000 * 4096
    assert stale == 0
    replica.commit([delete(*list(points)[:900])], term=1)
    settle(replica, 2e5)
    assert store.points_bytes(100)[0] < 1.1 * 100 * 4096 + upkeep.SPARE_BYTES_MAX
    found, _ = replica.scan("", 1000, with_vector=True)
    assert [(one.id, one.payload, one.vector) for one in found] == [
        (name, payloads[name], vector.tobytes()) for name, vector in list(points.items())[900:]
    ]


def test_what_a_reader_still_wants_is_given_back_later(open_replica: OpenReplica) -> None:
    replica = open_replica(dim=1024, settings=EngineSettings(seal_points=100_000))
    replica.commit([upsert(vectors(1000, 1024))], term=1)
    reader = replica._state.view
    settle(replica, 0.0)
    assert replica._state.store.log_bytes > upkeep.SPARE_BYTES_MAX
    del reader
    settle(replica, 1e5)
    assert replica._state.store.log_bytes < upkeep.SPARE_BYTES_MAX


def test_tidying_wants_room_and_is_tried_less_and_less_often_while_there_is_none(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica(dim=1024, settings=EngineSettings(seal_points=100_000))
    replica.commit([upsert(vectors(1000, 1024))], term=1)
    replica.seal(1e5)
    replica.seal(2e5)
    tried = []
    with monkeypatch.context() as full:
        full.setattr("shard_server.engine.disk.free_bytes", lambda _: 0)
        for now_s in range(1000):
            try:
                replica.improve(3e5 + now_s)
            except OSError as error:
                tried.append((now_s, error.errno))
    assert {number for _, number in tried} == {errno.ENOSPC}
    assert np.diff([at_s for at_s, _ in tried]).tolist() == [5, 10, 20, 40, 80, 160, 300, 300]
    assert replica._state.store.log_bytes > upkeep.SPARE_BYTES_MAX
    settle(replica, 4e5)
    assert replica._state.store.log_bytes < upkeep.SPARE_BYTES_MAX


def test_verification_that_a_shortage_ended_begins_again(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(200))], term=1)
    settle(replica)
    replica.close()
    again = open_replica()
    read = RawVectors.verifying

    def short(_: RawVectors) -> Iterator[int]:
        raise OSError(errno.ENOMEM, "memory is short")
        yield 0

    monkeypatch.setattr(RawVectors, "verifying", short)
    for _ in range(3):
        with pytest.raises(OSError, match="memory is short"):
            again.improve(0.0)
    monkeypatch.setattr(RawVectors, "verifying", read)
    settle(again)
    assert not any(part.segment.vectors.pending for part in again._state.segments)


def test_deletes_alone_are_sealed_too(open_replica: OpenReplica) -> None:
    replica = open_replica()
    points = vectors(100)
    replica.commit([upsert(points)], term=1)
    settle(replica)
    replica.commit([delete(*list(points)[:10])], term=1)
    settle(replica, 2e4)
    assert replica.stats().unsealed_writes == 0
    assert list(replica._state.store.log_after(0)) == []
