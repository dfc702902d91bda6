"""One replica whose disk is full, whose store has failed, or whose files are damaged: what it refuses, finds, and gets over."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shard_server.engine import upkeep
from shard_server.engine.store import Batch, Store
from tests.unit.engine.conftest import SMALL, OpenReplica, delete, maintain, settle, upsert
from tests.unit.engine.test_replica import files_of, flip, vectors
from vectorfleet.errors import DataLoss, InternalError, ResourceExhausted


def test_upserts_are_refused_while_the_reserve_is_touched_and_deletes_are_not(open_replica: OpenReplica) -> None:
    replica = open_replica(settings=replace(SMALL, min_free_bytes=2**62))
    with pytest.raises(
        ResourceExhausted, match=rf"\d+ bytes are free at .*, and {2**62} are kept in reserve"
    ) as caught:
        replica.commit([upsert(vectors(10)), delete("00003")], term=1)
    assert caught.value.reason == "DISK_FULL"
    assert replica.applied_seqno == 0
    assert replica.commit([delete("00003")], term=1)[0].seqno == 1
    assert replica.trouble == "", "nothing has failed"


def test_a_store_that_failed_is_opened_again_beside_a_search_that_holds_the_old_one(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    points = vectors(100)
    replica.commit([upsert(points)], term=1)
    settle(replica)
    replica.commit([upsert({"late": np.ones(8, np.float32)})], term=1)
    segments = {part.segment.number: part.segment for part in replica._state.segments}

    def full(self: Store, entries: object, *, term_changed: bool) -> None:
        raise ResourceExhausted("the node's disk is full", reason="DISK_FULL")

    monkeypatch.setattr(Store, "append", full)
    for _ in range(2):
        with pytest.raises(ResourceExhausted, match="disk is full"):
            replica.commit([delete("late")], term=1)
    monkeypatch.undo()
    with pytest.raises(ResourceExhausted, match="takes no writes until its store is opened again"):
        replica.commit([delete("late")], term=1)
    assert "disk is full" in replica.trouble

    held = replica._state.view  # as a search under way does
    assert replica.search(np.ones((1, 8), np.float32), 1).ids == ["late"]
    healing = threading.Thread(target=lambda: maintain(replica, 5000.0))
    healing.start()
    healing.join(0.2)
    assert healing.is_alive(), "the old store is in use"
    assert held.points.get(b"late") is not None
    del held
    assert replica.search(np.ones((1, 8), np.float32), 1).ids == ["late"], "waits for the new one"
    healing.join()
    assert replica.trouble == ""
    replica.commit([delete("late")], term=1)
    assert replica.stats().points == 100
    assert all(part.segment is segments[part.segment.number] for part in replica._state.segments), (
        "nothing is read again"
    )


def test_an_error_that_somebody_keeps_does_not_keep_the_store_open(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(10))], term=1)
    settle(replica)
    replica.close()
    (path,) = files_of(tmp_path, "ids")
    whole = path.read_bytes()
    flip(path)
    with pytest.raises(DataLoss, match="ids does not match its checksum") as kept:
        open_replica()
    path.write_bytes(whole)
    assert open_replica().stats().points == 10, "its lock is free"
    assert kept.value.reason == "DATA_LOSS"


def test_an_error_in_the_middle_of_applying_is_healed_from_the_log(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(100))], term=1)
    monkeypatch.setattr(Batch, "put_applied", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replica.commit([delete("00001"), upsert({"new": np.ones(8, np.float32)})], term=1)
    monkeypatch.undo()
    assert replica.stats().points == 100, "searches see the last view"
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        replica.commit([delete("00002")], term=1)
    assert maintain(replica, 0.0)
    assert replica.commit([delete("00002")], term=1)[0].affected == 1
    assert sorted(point.id for point in replica.fetch(["00001", "00002", "new"], with_vector=False)) == ["new"]


def test_a_store_that_lost_points_is_found_by_background_work(open_replica: OpenReplica, tmp_path: Path) -> None:
    replica = open_replica()
    replica.commit([upsert(vectors(100))], term=1)
    settle(replica)
    replica.close()
    store = Store(tmp_path / "replica" / "store", create=False)
    batch = store.batch()
    batch.delete_point(b"00007")
    batch.write(sync=True)
    store.close()
    with pytest.raises(DataLoss, match="knows 99 points where the segments and the log hold 100"):
        settle(open_replica())


def test_damaged_vectors_are_found_by_background_work_and_merged_by_none(
    open_replica: OpenReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_VERIFY_BYTES_PER_STEP", 1)
    replica = open_replica()
    for first in range(4):
        replica.commit([upsert(vectors(70, seed=first))], term=1)
        maintain(replica, 0.0)
    assert replica.stats().segments >= 2
    replica.close()
    victim = files_of(tmp_path, "vectors")[-1]
    flip(victim)
    again = open_replica(settings=replace(SMALL, verify_bytes_per_s=1))
    assert maintain(again, 0.0), "it verifies a little"
    for now_s in range(1, 10):
        assert not maintain(again, float(now_s)), "it waits: nothing is merged before all is verified"
    assert not again.settled
    again.commit([upsert(vectors(70, seed=9))], term=1)
    with pytest.raises(DataLoss, match=f"{victim.parent.name}/vectors does not match its checksum"):
        settle(again, 1e6)
    assert not maintain(again, 9e9), "it leaves what is damaged alone"
    with pytest.raises(DataLoss, match="does not match its checksum"):
        again.commit([delete("00001")], term=1)
    assert victim.exists()


def test_a_store_that_could_not_be_tidied_is_opened_again_and_tidied_then(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica(dim=1024, settings=replace(SMALL, seal_points=100_000))
    points = vectors(600, 1024)
    replica.commit([upsert(points)], term=1)

    def full(self: Store) -> None:
        raise ResourceExhausted("the node's disk is full", reason="DISK_FULL")

    monkeypatch.setattr(Store, "shrink_log", full)
    with pytest.raises(ResourceExhausted, match="disk is full"):
        settle(replica)
    monkeypatch.undo()
    assert "disk is full" in replica.trouble
    assert replica.stats().points == 600, "searches go on"
    settle(replica, 1e5)
    assert replica.trouble == ""
    assert replica._state.store.log_bytes < upkeep.SPARE_BYTES_MAX
    replica.commit([delete("00003")], term=1)
    assert replica.stats().points == 599
