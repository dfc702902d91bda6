"""Alerts and dashboard over a real cluster that a real Prometheus scrapes, while it is hurt in every way that an alert is for.

One cluster and one story, since that is what takes the time: all is well; then at once a disk is full, another says so, a
node is slow, searches look less hard and a node dies; then etcd dies, and a node hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vectorfleet
from tests import faults
from tests.cluster.waiting import until
from tests.monitoring import rules
from tests.monitoring.live_prometheus import Prometheus, prometheus
from vectorfleet.local import LocalCluster

pytestmark = pytest.mark.cluster

WINDOW = "6s"
CONSTANT = {"vectorfleet_shard_disk_reserve_bytes"}
"""A setting: the one metric that does not move while a process lives."""
ONLY_WHILE_TRUE = {"vectorfleet_shard_replica_troubled"}
HURT_FIRST = {
    "VectorfleetSearchSlow", "VectorfleetAnswersPartial", "VectorfleetCallsFail", "VectorfleetRecallLow",
    "VectorfleetProcessDown", "VectorfleetNodeAway", "VectorfleetReplicaTroubled", "VectorfleetDiskFull",
}  # fmt: skip
HURT_LAST = {"VectorfleetNodeSilent", "VectorfleetEtcdAway", "VectorfleetNoController"}
DIM = 16
POINTS = 3_000
CALLERS = 12
LISTS = 64
QUICK = ("--seal-age-s", "0.3", "--seal-points", "1000", "--search-threads", "1")


class Traffic:
    """Callers of all kinds, until it is told to stop; what fails is the cluster's to count."""

    def __init__(self, address: str, name: str, tied: str) -> None:
        self._address = address
        self._name = name
        self._tied = tied
        self._stopping = False
        self.nprobe = LISTS
        """Of searches in `tied`, a collection of one shard."""
        self.patience_s = 5.0
        """Of every fourth caller."""
        self._rng = np.random.default_rng(1)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic")
        thread.start()
        try:
            yield
        finally:
            self._stopping = True
            thread.join()

    async def _run(self) -> None:
        async with vectorfleet.AsyncClient(self._address, timeout=5.0) as client:
            searches = [self._search(client, turn) for turn in range(CALLERS)]
            await asyncio.gather(self._write(client), self._search_much(client), *searches)

    async def _search(self, client: vectorfleet.AsyncClient, turn: int) -> None:
        while not self._stopping:
            vector = self._rng.standard_normal((1, DIM))
            with contextlib.suppress(vectorfleet.VectorfleetError):
                if turn % 2:
                    await client.search(self._tied, vectors=vector, nprobe=self.nprobe, oversample=self._oversample)
                else:
                    patience_s = 5.0 if turn % 4 else self.patience_s
                    await client.search(self._name, vectors=vector, with_payload=True, timeout=patience_s)
            # In peace with pauses: recall is measured only while no search waits, and this machine may be slow.
            await asyncio.sleep(0.1 if self._at_peace else 0.02)

    async def _search_much(self, client: vectorfleet.AsyncClient) -> None:
        """Once patience is short, asks for so much that a node has not done it when that is over."""
        while not self._stopping:
            await asyncio.sleep(1.0)
            if self._at_peace:
                continue
            vectors = self._rng.standard_normal((500, DIM))
            with contextlib.suppress(vectorfleet.VectorfleetError):
                await client.search(self._name, vectors=vectors, k=500, exact=True, timeout=self.patience_s)

    async def _write(self, client: vectorfleet.AsyncClient) -> None:
        while not self._stopping:
            ids = self._rng.choice(POINTS, 50, replace=False).tolist()
            vectors = self._rng.standard_normal((50, DIM))
            with contextlib.suppress(vectorfleet.VectorfleetError):
                await client.upsert(self._name, ids=ids, vectors=vectors)
            with contextlib.suppress(vectorfleet.VectorfleetError):
                await client.delete(self._name, ids=ids[:3])
            await asyncio.sleep(0.05)

    @property
    def _at_peace(self) -> bool:
        return self.patience_s > 1.0

    @property
    def _oversample(self) -> float:
        return 10.0 if self.nprobe == LISTS else 1.0


@contextlib.contextmanager
def slow(cluster: LocalCluster, node: str) -> Iterator[None]:
    """Lets a node work for a moment, again and again, with longer pauses between."""
    stopping = threading.Event()

    def pause() -> None:
        while not stopping.is_set():
            cluster.signal(node, signal.SIGSTOP)
            stopping.wait(0.4)
            cluster.signal(node, signal.SIGCONT)
            stopping.wait(0.1)

    thread = threading.Thread(target=pause, name=f"slowing {node}")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def load(client: vectorfleet.Client, one: Prometheus) -> str:
    """Makes a collection over all nodes and one on each, seen by Prometheus from the start; returns that of node-0."""
    until(lambda: one.ask('count(vectorfleet_shard_replicas{status="serving"} == 0) == 3'), what="nodes are scraped")
    rng = np.random.default_rng(2)
    index = vectorfleet.IndexOptions(nlist=LISTS, train_points=1_000)
    for name in ("films", "c0", "c1", "c2"):
        client.create_collection(name, dim=DIM, metric="l2", shards=3 if name == "films" else 1, index=index)
        before = f'vectorfleet_shard_codebook_version{{collection="{name}"}} == 0'
        until(lambda: one.ask(before), what=f"{name} is scraped")  # noqa: B023 (called at once)
        payloads = [{"row": row} for row in range(POINTS)]
        client.upsert(name, ids=range(POINTS), vectors=rng.standard_normal((POINTS, DIM)), payloads=payloads)
        client.wait_indexed(name)
    holders = {
        shard.collection: shard.replicas[0].node for shard in client.cluster().shards if shard.collection != "films"
    }
    return next(name for name, node in holders.items() if node == "node-0")


def targets(cluster: LocalCluster) -> dict[str, dict[str, str]]:
    """What Prometheus scrapes."""
    jobs: dict[str, dict[str, str]] = {"vectorfleet-router": {}, "vectorfleet-shard": {}}
    for name, process in cluster.processes.items():
        if process.metrics_address:
            jobs["vectorfleet-router" if name.startswith("router") else "vectorfleet-shard"][name] = (
                process.metrics_address
            )
    return jobs


def lacking(one: Prometheus) -> list[str]:
    """Metrics that alerts or dashboard name, and that no process has, or that never moved."""
    found = []
    for name in sorted(rules.metrics_named()):
        # What is counted begins at nothing; some of it only appears when it is counted first.
        counted = name.endswith(("_total", "_bucket", "_sum", "_count")) or name in ONLY_WHILE_TRUE
        least = "0" if counted else f"min_over_time({name}[10m])"
        moved = one.ask(f"max(max_over_time({name}[10m]) - {least}) > 0")
        if not moved and not (name in CONSTANT and one.ask(name)):
            found.append(name)
    return found


def blank(one: Prometheus) -> list[str]:
    """Queries of the dashboard that show nothing."""
    return [
        f"{title}: {query}"
        for title, query in rules.panels()
        if not one.ask(query.replace("$__rate_interval", "30s").replace("[1h]", "[30s]"))
    ]


def test_every_alert_fires_by_a_real_fault_and_every_panel_has_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rules.alerts().keys() == HURT_FIRST | HURT_LAST, "each alert has its fault here"
    full = tmp_path / "disks-are-full"
    monkeypatch.setenv("LD_PRELOAD", str(faults.built_in(tmp_path)))
    monkeypatch.setenv("FAULTS_FOLDER", str(tmp_path / "data" / "node-0"))
    monkeypatch.setenv("FAULTS_NO_ROOM", str(tmp_path / "data" / "node-1"))
    monkeypatch.setenv("FAULTS_WHILE", str(full))
    cluster = LocalCluster(tmp_path / "data", nodes=3, shard_args=QUICK, router_args=("--recall-check-rate", "20"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster)
        monkeypatch.undo()
        one = stack.enter_context(prometheus(tmp_path / "prometheus", rules.hurried(WINDOW), targets(cluster)))
        with vectorfleet.Client(cluster.address, timeout=60.0) as client:
            tied = load(client, one)
        traffic = Traffic(cluster.address, "films", tied)
        stack.enter_context(traffic.running())
        expected = f'increase(vectorfleet_router_recall_expected_hits_total{{collection="{tied}"}}[{WINDOW}]) > 20'
        until(lambda: one.ask(expected), what="the recall of live searches is measured")
        # How long a search takes says more of the machine than of the cluster.
        assert one.firing() <= {"VectorfleetSearchSlow"}

        fired: set[str] = set()

        def all_fired(wanted: set[str]) -> bool:
            fired.update(one.firing())
            return wanted <= fired

        with slow(cluster, "node-0"):
            full.touch()
            traffic.nprobe, traffic.patience_s = 1, 0.15
            cluster.kill("node-2")
            until(lambda: all_fired(HURT_FIRST), within_s=90, what=f"{HURT_FIRST} fire")
            assert not (queries := blank(one)), "\n".join(queries)
        cluster.kill("etcd")
        cluster.signal("node-1", signal.SIGSTOP)
        until(lambda: all_fired(HURT_LAST), within_s=90, what=f"{HURT_LAST} fire")
        cluster.signal("node-1", signal.SIGCONT)
        assert not (names := lacking(one)), ", ".join(names)
