"""A replica's snapshot to a directory and back, under another collection's uid; and what is found on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shard_server.backup.stores import DirectoryStore
from shard_server.backup.transfer import Transfer, download_shard, upload_shard
from shard_server.engine import snapshot
from shard_server.engine.replica import Replica
from shard_server.engine.state import ReplicaIdentity
from tests.unit.engine.conftest import maintain
from vectorfleet.errors import DataLoss, VectorfleetError
from vectorfleet.internal.v1 import backup_pb2, storage_pb2

DIM = 4


def identity(uid: str) -> ReplicaIdentity:
    return ReplicaIdentity(uid, 3, DIM, 1, 3)


def upsert(ids: range) -> storage_pb2.Mutation:
    vectors = np.full((len(ids), DIM), 2.0, np.dtype("<f4"))
    batch = storage_pb2.UpsertBatch(ids=[str(one) for one in ids], vectors=vectors.tobytes())
    return storage_pb2.Mutation(upsert=batch)


@pytest.fixture
def backed_up(tmp_path: Path) -> tuple[DirectoryStore, backup_pb2.ShardBackup]:
    """A replica with a sealed segment and a buffer, backed up; it is written to and merged before its files are copied."""
    replica = Replica.open(tmp_path / "replica", identity("old"))
    replica.commit([upsert(range(50))], 1)
    maintain(replica, 0.0)
    assert maintain(replica, 1e6), "sealed"
    replica.commit([upsert(range(40, 60))], 1)
    taken = replica.snapshot(0)
    replica.commit([upsert(range(100))], 1)
    while maintain(replica, 1e9):
        pass
    store = DirectoryStore(tmp_path / "place")
    shard = upload_shard(store, taken, Transfer())
    taken.remove()
    assert not list((tmp_path / "replica" / snapshot.FOLDER).iterdir())
    replica.close()
    return store, shard


def test_a_replica_comes_back_as_it_was(
    backed_up: tuple[DirectoryStore, backup_pb2.ShardBackup], tmp_path: Path
) -> None:
    store, shard = backed_up
    assert (shard.shard, shard.seqno) == (3, 70)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "left by an earlier try").touch()
    transfer = Transfer()
    download_shard(store, shard, tmp_path / "new", transfer)
    assert transfer.bytes_done == transfer.bytes_total == shard.bytes
    assert len(list((tmp_path / "new").rglob("segments/*/sums"))) == 1, "it need not be made again of all vectors"
    snapshot.adopt(tmp_path / "new", identity("new"))
    replica = Replica.open(tmp_path / "new", identity("new"))
    points, end = replica.scan("", 1_000, with_vector=True)
    assert end
    assert {point.id for point in points} == {str(one) for one in range(60)}
    assert replica.applied_seqno == 70
    assert replica.stats().segments == 1, "the segment came as it was; it is not written anew"
    replica.close()


def test_every_damaged_or_missing_object_is_named(
    backed_up: tuple[DirectoryStore, backup_pb2.ShardBackup], tmp_path: Path
) -> None:
    store, shard = backed_up
    for key, size in store.sizes("objects/").items():
        path = tmp_path / "place" / key
        whole = path.read_bytes()
        ways = [whole + b"x", None] + ([whole[:-1] + bytes([whole[-1] ^ 1])] if size else [])
        for damaged in ways:
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(DataLoss) as caught:
                download_shard(store, shard, tmp_path / "new", Transfer())
            assert caught.value.reason == "BACKUP_DAMAGED"
            assert key in caught.value.message
            path.write_bytes(whole)
    download_shard(store, shard, tmp_path / "new", Transfer())


def test_a_damaged_replica_is_not_backed_up_as_if_it_were_whole(tmp_path: Path) -> None:
    replica = Replica.open(tmp_path / "replica", identity("old"))
    replica.commit([upsert(range(50))], 1)
    maintain(replica, 0.0)
    assert maintain(replica, 1e6), "sealed"
    taken = replica.snapshot(0)
    (victim,) = (taken.directory / "segments").glob("*/vectors")
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(DataLoss, match="vectors"):
        upload_shard(DirectoryStore(tmp_path / "place"), taken, Transfer())
    replica.close()


def test_a_copy_that_nobody_waits_for_ends(
    backed_up: tuple[DirectoryStore, backup_pb2.ShardBackup], tmp_path: Path
) -> None:
    store, shard = backed_up
    transfer = Transfer()
    transfer.cancel()
    with pytest.raises(VectorfleetError) as caught:
        download_shard(store, shard, tmp_path / "new", transfer)
    assert caught.value.reason == "CANCELLED"
