"""An engine with small settings, and writes in short form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shard_server.engine import search
from shard_server.engine.index import Codebook, train_codebook
from shard_server.engine.replica import Replica
from shard_server.engine.state import ReplicaIdentity
from shard_server.engine.upkeep import EngineSettings
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

SMALL = EngineSettings(seal_points=64, seal_age_s=5.0, idle_s=1.0)


def upsert(
    points: Mapping[str, NDArray[np.float32]], payloads: Mapping[str, bytes] | None = None
) -> storage_pb2.Mutation:
    return storage_pb2.Mutation(
        upsert=storage_pb2.UpsertBatch(
            ids=list(points),
            vectors=b"".join(vector.astype("<f4").tobytes() for vector in points.values()),
            payloads=[] if payloads is None else [payloads.get(point_id, b"") for point_id in points],
        )
    )


def delete(*ids: str) -> storage_pb2.Mutation:
    return storage_pb2.Mutation(delete=storage_pb2.DeleteBatch(ids=ids))


def identity(
    dim: int = 8, metric: int = types_pb2.METRIC_L2, kind: int = types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN
) -> ReplicaIdentity:
    return ReplicaIdentity("uid", 0, dim, metric, kind)


def maintain(replica: Replica, now_s: float) -> bool:
    """Does at most one unit of background work, as a node with one thread would; says whether there was any."""
    return replica.seal(now_s) or replica.improve(now_s)


def settle(replica: Replica, now_s: float = 1000.0) -> None:
    """Runs the background work until nothing is left; time is a parameter, so no test waits."""
    maintain(replica, now_s)
    for step in range(1, 1000):
        if not maintain(replica, now_s + 10.0 * step) and replica.settled:
            return
    raise AssertionError("background work does not come to an end")


def codebook_for(replica: Replica, version: int = 1, nlist: int = 8, m: int = 4) -> Codebook:
    sample = replica.sample(100_000, seed=1)
    content = train_codebook(
        sample, kind=replica.identity.kind, metric=replica.identity.metric, nlist=nlist, m=m, seed=1
    )
    return Codebook.load(content, version)


@pytest.fixture(autouse=True)
def through_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches go through codes, however few the rows are: what few hold is compared one by one outside of tests."""
    monkeypatch.setattr(search, "EXACT_ROWS", 0)


@pytest.fixture
def open_replica(tmp_path: Path) -> object:
    """Opens replicas in the test's folder, and closes what is left open."""
    opened: list[Replica] = []

    def make(
        name: str = "replica",
        codebook: Codebook | None = None,
        settings: EngineSettings = SMALL,
        older: Sequence[Codebook] = (),
        **about: int,
    ) -> Replica:
        replica = Replica.open(tmp_path / name, identity(**about), settings, codebook, older)
        opened.append(replica)
        return replica

    yield make
    for replica in opened:
        replica.close()


OpenReplica = Callable[..., Replica]
