"""A disk that fills up under a node, and has room again: writes are refused with the reason, and come back by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vectorfleet
from tests import faults
from tests.cluster.conftest import PATIENCE_S, StartCluster
from tests.cluster.waiting import until

NAME = "points"


def test_a_full_disk_refuses_writes_and_nothing_else_until_there_is_room(
    start_cluster: StartCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "the-disk-is-full"
    monkeypatch.setenv("LD_PRELOAD", str(faults.built_in(tmp_path)))
    monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path / "cluster-0" / "node-0"))
    monkeypatch.setenv("FAULTS_WHILE", str(full))
    cluster = start_cluster(nodes=2)
    monkeypatch.undo()
    pids = {name: process.pid for name, process in cluster.processes.items()}
    acknowledged: set[str] = set()
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:

        def write(first: int, last: int) -> None:
            ids = [str(number) for number in range(first, last)]
            client.upsert(NAME, ids=ids, vectors=np.arange(first, last, dtype=np.float32).reshape(-1, 1))
            acknowledged.update(ids)

        def found() -> set[str]:
            result = client.search(NAME, vectors=[[0.0]], k=10_000, exact=True)
            assert result.coverage.complete
            return {hit.id for hit in result.hits[0]}

        client.create_collection(NAME, dim=1, metric="l2", shards=4)
        write(0, 400)
        full.touch()
        for attempt in range(3):
            with pytest.raises(vectorfleet.ResourceExhausted) as caught:
                write(1000 + 100 * attempt, 1100 + 100 * attempt)
            assert caught.value.reason == "DISK_FULL"
            assert "disk is full" in caught.value.message
            assert acknowledged <= found()
        messages = [replica.message for shard in client.cluster().shards for replica in shard.replicas]
        assert sum("disk is full" in message for message in messages) == 2, messages

        full.unlink()

        def written() -> bool:
            write(2000, 2400)
            return True

        until(written, what="writes are taken again")
        assert acknowledged <= found()
        client.wait_indexed(NAME, timeout=60)
        assert acknowledged <= found()
        assert {name: process.pid for name, process in cluster.processes.items()} == pids, "no process was restarted"
