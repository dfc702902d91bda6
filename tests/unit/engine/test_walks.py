"""A walk through a replica's points, beside writes."""

from __future__ import annotations

import numpy as np
import pytest

from shard_server.engine.state import ReplicaState
from tests.unit.engine.conftest import OpenReplica, delete, upsert


def test_a_walk_is_of_one_moment_and_each_of_its_points_has_its_row(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    replica.commit([upsert({f"{row:05}": np.full(8, row, np.float32) for row in range(4)})], term=1)
    encode = ReplicaState.encode_buffer

    def walked_before_it_is_published(state: ReplicaState) -> None:
        encode(state)
        shown, end = replica.scan("", 10, with_vector=True)
        assert end
        assert [(point.id, point.version) for point in shown] == [("00001", 2), ("00002", 3), ("00003", 6), ("new", 7)]

    monkeypatch.setattr(ReplicaState, "encode_buffer", walked_before_it_is_published)
    assert [point.id for point in replica.scan("", 10, with_vector=True)[0]] == ["00000", "00001", "00002", "00003"]
    replica.commit([delete("00000"), upsert({name: np.ones(8, np.float32) for name in ("00003", "new")})], term=1)
