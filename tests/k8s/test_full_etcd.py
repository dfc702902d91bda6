"""An etcd whose database is full serves reads: its probes must not kill it, and must keep writers away."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cluster.etcd_process import EtcdProcess
from tests.k8s.manifests import named

QUOTA_BYTES = 64 * 1024
pytestmark = pytest.mark.cluster


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def fill(etcd: EtcdProcess) -> None:
    for number in range(200):
        etcd.ctl("put", f"key-{number}", "x" * 10_000)


def test_a_full_etcd_is_live_and_not_ready(tmp_path: Path) -> None:
    (container,) = named("prod", "StatefulSet", "etcd")["spec"]["template"]["spec"]["containers"]
    path = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    with EtcdProcess(tmp_path / "etcd", f"--quota-backend-bytes={QUOTA_BYTES}") as etcd:
        etcd.ctl("put", "before", "it is full")
        with pytest.raises(AssertionError, match="space exceeded"):
            fill(etcd)
        assert "NOSPACE" in etcd.ctl("alarm", "list")
        assert etcd.ctl("get", "before", "--print-value-only") == "it is full\n"
        assert {probe: status(etcd.address, where) for probe, where in path.items()} == {
            "startup": 200,
            "liveness": 200,
            "readiness": 503,
        }
