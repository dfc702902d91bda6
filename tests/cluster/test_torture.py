"""A few rounds of torture; and the proof that a round notices the bugs that it is there for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cluster import torture
from tests.cluster.faults import Fault
from tests.cluster.planted import SickCluster

KILL = Fault(("node-0",), freeze=False, moment="later", delay_s=0.0, down_s=0.1)
FREEZE = Fault(("node-0",), freeze=True, moment="later", delay_s=0.0, down_s=0.1)
LAZY = ("--seal-points", "20000", "--seal-age-s", "60")


def test_nothing_acknowledged_is_lost(tmp_path: Path, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**31))
    cluster = torture.start(tmp_path / "data")
    try:
        played = torture.play(cluster, seed, number=1)
    finally:
        cluster.stop()
    assert not played.failed, f"make torture ROUNDS=1 SEED={seed}: {torture.report(played)}"
    assert played.happened["segments made"] > 0, "the round sealed nothing"


@pytest.mark.parametrize(
    ("bug", "blow", "shard_args"),
    [
        # A restart would count the points, and miss the tombstone by itself.
        ("forget-a-tombstone", FREEZE, torture.SHARD_ARGS),
        # Buffers live so long that the log has much to lose, and much to replay.
        ("skip-the-fsync", KILL, LAZY),
        ("reorder-the-replay", KILL, LAZY),
    ],
)
def test_it_catches_a_planted_bug(tmp_path: Path, bug: str, blow: Fault, shard_args: tuple[str, ...]) -> None:
    kind = SickCluster.with_bug(bug)
    cluster = torture.start(tmp_path / "data", kind, nodes=1, routers=1, shard_args=shard_args)
    try:
        played = torture.play(cluster, seed=1, number=1, blows=[blow], writes_between=80, wait_s=60.0, settle=False)
    finally:
        cluster.stop()
    assert played.verdict.violations, torture.report(played)
