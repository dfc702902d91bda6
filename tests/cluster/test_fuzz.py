"""Every RPC of the contract, asked by malformed and extreme requests for a while; `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cluster import fuzz
from tests.cluster.fuzz_target import Target, cluster_with_a_key
from tests.cluster.planted import SickCluster

REQUESTS = 80


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_no_request_does_harm(tmp_path: Path, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**31))
    methods = fuzz.methods()
    assert {"Upsert", "SearchStream", "Write", "TrainCodebook"} <= {method.name for method in methods}
    accepted = set()
    with cluster_with_a_key(tmp_path / "data") as cluster, Target(cluster) as target:
        for method in methods:
            report = fuzz.run(target, method, REQUESTS, seed)
            assert not report.findings, f"make fuzz N={REQUESTS} SEED={seed}: {report}"
            assert report.codes["INVALID_FIELD"], report
            if report.codes["OK"]:
                accepted.add(method.name)
        assert not fuzz.run_garbage(target, 40, seed).findings
    assert {"Upsert", "Delete", "Get", "BulkUpsert", "Search", "Write", "Fetch", "CreateKey"} <= accepted, (
        "all were refused at the door"
    )


def test_harm_is_noticed(tmp_path: Path) -> None:
    (search,) = (method for method in fuzz.methods() if method.full_name.endswith("internal.v1.ShardService.Search"))
    with SickCluster.with_bug("check-nothing")(tmp_path / "data", nodes=1) as cluster, Target(cluster) as target:
        findings = fuzz.run(target, search, 300, seed=1).findings
    assert any("INTERNAL" in finding for finding in findings), findings
