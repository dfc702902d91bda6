"""A backup that meets a damaged file of the replica: it says so, and the replica is out of service from then on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shard_server.backup.archive import Archive, ArchivePools
from shard_server.backup.places import Roots
from shard_server.budget import ByteBudget
from shard_server.codebook_store import CodebookStore
from shard_server.engine.replica import Replica
from shard_server.hosted import HostedReplica
from shard_server.threads import WorkPool
from tests.unit.engine.conftest import identity, settle, upsert
from tests.unit.shard_server.fake_replica import collection
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import shard_service_pb2 as pb


async def test_damage_that_a_backup_meets_takes_the_replica_out_of_service(tmp_path: Path) -> None:
    pool = WorkPool("work", threads=2, waiting_max=10)
    record = collection("uid", ["n1"])
    held = HostedReplica(record, record.shards[0], pool, ByteBudget("writes", 100), lambda _: None)
    replica = Replica.open(tmp_path / "replica", identity(4))
    try:
        replica.commit([upsert({str(number): np.full(4, number, np.float32) for number in range(100)})], term=1)
        settle(replica)
        held.serve(replica)
        store = CodebookStore(tmp_path / "codebooks")
        archive = Archive("n1", Roots([str(tmp_path / "kept")]), store, lambda *_: None, ArchivePools(pool, pool, pool))

        async def back_up(place: str) -> list[pb.BackUpShardResponse]:
            request = pb.BackUpShardRequest(destination=str(tmp_path / "kept" / place))
            return [told async for told in archive.back_up(held, request)]

        assert (await back_up("first"))[-1].shard.seqno == 100
        (vectors,) = (tmp_path / "replica").rglob("segments/*/vectors")
        content = bytearray(vectors.read_bytes())
        content[-2] ^= 0x20
        vectors.write_bytes(content)
        assert held.serving
        with pytest.raises(DataLoss, match="vectors does not match its checksum"):
            await back_up("second")
        assert held.failure_reason == "DATA_LOSS"
        with pytest.raises(DataLoss, match="vectors does not match its checksum"):
            await held.run(pool, None, Replica.stats)
        assert not list((tmp_path / "replica" / "snapshots").iterdir())
    finally:
        replica.close()
        pool.close()
