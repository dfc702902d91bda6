"""What the manifests start, started: the commands, arguments, environments and probes of the overlays, as real processes."""

from __future__ import annotations

import functools
import signal
from pathlib import Path

import numpy as np
import pytest

import vectorfleet
from tests.certificates import write
from tests.cluster.waiting import until
from tests.k8s.pods import ADMIN_KEY, Pod, PodCluster

pytestmark = pytest.mark.cluster
STARTUP_S = 60.0


def wait(pods: list[Pod], kind: str) -> None:
    for pod in pods:
        until(functools.partial(pod.probe, kind), within_s=STARTUP_S, what=f"the {kind} probe of {pod.name}")


@pytest.mark.parametrize(("overlay", "members"), [("dev", 1), ("prod", 3)])
def test_an_overlay_starts_serves_and_drains(overlay: str, members: int, tmp_path: Path) -> None:
    with PodCluster(overlay, {"etcd": members, "shard": 2, "router": 1}, tmp_path) as cluster:
        etcd, shards, (router,) = cluster.of("etcd"), cluster.of("shard"), cluster.of("router")
        # Kubernetes starts them in any order. Without etcd they live, and none of them is ready.
        for pod in (*shards, router):
            pod.start()
        wait([*shards, router], "startup")
        for pod in (*shards, router):
            assert pod.probe("liveness")
            assert not pod.probe("readiness")
        for pod in etcd:
            pod.start()
        for kind in ("startup", "liveness", "readiness"):
            wait([*etcd, *shards, router], kind)

        vectors = np.eye(8, dtype=np.float32)
        security = vectorfleet.Security()  # the addresses are of this machine
        if overlay == "prod":
            security = vectorfleet.Security(*write(tmp_path / "client", "client").paths, api_key=ADMIN_KEY)
        with vectorfleet.Client(f"{router.address}:7700", timeout=30, security=security) as client:
            expected = {pod.name: f"{pod.address}:7701" for pod in shards}
            # A router hears of a node that has become ready a moment later.
            until(lambda: {node.id: node.address for node in client.cluster().nodes} == expected, what="both nodes")
            client.create_collection("things", dim=8, shards=2)
            client.upsert("things", ids=range(8), vectors=vectors)

            # As a rolling update does: SIGTERM, a drain within the grace period, and the same pod on the same volume.
            assert shards[0].stop() == 0, shards[0].log()
            shards[0].start()
            for kind in ("startup", "liveness", "readiness"):
                wait(shards[:1], kind)

            def complete() -> bool:
                return client.search("things", vectors=vectors[:3], k=1).coverage.complete

            until(complete, what="the router finds the node again")
            found = client.search("things", vectors=vectors[:3], k=1, min_coverage=1.0)
            assert [hits[0].id for hits in found.hits] == ["0", "1", "2"]

        for pod in (router, *shards):
            assert pod.stop() == 0, pod.log()
        for pod in etcd:
            assert pod.stop() in (0, -signal.SIGTERM), pod.log()  # etcd ends by the signal that it was sent
        for pod in cluster.pods.values():
            assert pod.written_outside_of_volumes() == []
