"""Whatever is restarted, in whatever order and however rudely, the answers stay the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import vectorfleet
from tests.cluster.conftest import PATIENCE_S, StartCluster
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

PROCESSES = ("etcd", "node-0", "node-1", "router-0")
ORDERS = [
    ("router-0", "node-1", "etcd", "node-0"),
    ("etcd", "node-0", "node-1", "router-0"),
    ("node-0", "etcd", "router-0", "node-1"),
]


def fill(client: vectorfleet.Client, rng: np.random.Generator) -> np.ndarray:
    """A trained and sealed collection, and one whose writes are in the log alone; both with deleted and replaced points."""
    vectors = rng.standard_normal((3_000, 12)).astype(np.float32)
    ids = [f"{number}" for number in range(3_000)]
    client.create_collection(
        "sealed", dim=12, metric="cosine", shards=3, index=vectorfleet.IndexOptions(train_points=1_000)
    )
    client.upsert("sealed", ids=ids, vectors=vectors, payloads=[{"n": number} for number in range(3_000)])
    client.delete("sealed", ids=ids[:500])
    client.upsert("sealed", ids=ids[500:1000], vectors=vectors[:500])
    client.wait_indexed("sealed", timeout=60)
    client.create_collection("logged", dim=12, metric="l2", shards=2)
    client.upsert("logged", ids=ids[:300], vectors=vectors[:300])
    client.delete("logged", ids=ids[:100])
    client.upsert("logged", ids=ids[100:200], vectors=vectors[200:300])
    return rng.standard_normal((16, 12)).astype(np.float32)


def answers(client: vectorfleet.Client, queries: np.ndarray) -> list[object]:
    told: list[object] = []
    for name, exact in itertools.product(("sealed", "logged"), (True, False)):
        found = client.search(
            name, vectors=queries, k=20, exact=exact, with_payload=True, min_coverage=1.0, timeout=5.0
        )
        told.append([[(hit.id, hit.score, hit.payload) for hit in hits] for hits in found.hits])
        told.append(client.count(name, timeout=5.0))
    return told


def check_until_whole(address: str, queries: np.ndarray, before: list[object], what: str) -> None:
    with vectorfleet.Client(address, timeout=PATIENCE_S) as client:
        until(lambda: answers(client, queries) == before, what=what)


def test_each_process_in_several_orders(start_cluster: StartCluster, rng: np.random.Generator) -> None:
    cluster = start_cluster(nodes=2)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        queries = fill(client, rng)
        before = answers(client, queries)
    for order in ORDERS:
        for process in order:
            cluster.kill(process)
            cluster.restart(process)
            check_until_whole(cluster.address, queries, before, f"the same answers after {process} of {order}")


@pytest.mark.parametrize("order", [PROCESSES, tuple(reversed(PROCESSES))])
def test_all_at_once(start_cluster: StartCluster, rng: np.random.Generator, order: tuple[str, ...]) -> None:
    """As after a power cut: everything is gone at the same time and comes back one by one."""
    cluster = start_cluster(nodes=2)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        queries = fill(client, rng)
        before = answers(client, queries)
    for process in order:
        cluster.kill(process)
    for process in PROCESSES:
        cluster.restart(process)
    check_until_whole(cluster.address, queries, before, "the same answers")


def test_stop_and_start_again(start_cluster: StartCluster, rng: np.random.Generator, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=2, data=tmp_path / "data")
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        queries = fill(client, rng)
        before = answers(client, queries)
    cluster.stop()
    again: LocalCluster = start_cluster(nodes=2, data=tmp_path / "data")
    check_until_whole(again.address, queries, before, "the same answers")
    with vectorfleet.Client(again.address, timeout=PATIENCE_S) as client:
        client.upsert("logged", ids=["new"], vectors=np.ones((1, 12)))
        assert client.count("logged") == 201
        assert client.wait_indexed("logged", timeout=60).progress.settled
