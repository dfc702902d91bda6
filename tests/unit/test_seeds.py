"""A seed repeats what torture and fuzzing choose."""

from __future__ import annotations

import numpy as np

from tests.cluster import faults
from tests.cluster.requests import Requests
from tests.cluster.sound_requests import IDS, mend
from vectorfleet.v1 import point_service_pb2

NAMES = ("etcd", "node-0", "node-1", "router-0", "router-1")


def test_a_seed_decides_the_faults() -> None:
    plans = [faults.plan(np.random.default_rng([seed, 7]), NAMES, 200) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    struck = {name for fault in plans[0] for name in fault.targets}
    assert struck == set(NAMES)
    assert {fault.freeze for fault in plans[0]} == {True, False}
    assert {fault.moment for fault in plans[0]} == set(faults.MOMENTS)


def test_a_seed_decides_the_requests() -> None:
    def some(seed: str) -> list[bytes]:
        requests = Requests(seed, {"id": (IDS, [""])}, mend)
        return [requests.next_bytes(point_service_pb2.UpsertRequest) for _ in range(200)]

    assert some("1") == some("1") != some("2")
    assert len(set(some("1"))) > 150
