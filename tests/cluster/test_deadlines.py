"""A caller's deadline is the longest that a caller waits, and every call has one."""

from __future__ import annotations

import signal
import time

import grpc
import numpy as np
import pytest

import vectorfleet
from tests.cluster.conftest import PATIENCE_S, StartCluster
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster
from vectorfleet.v1 import point_service_pb2, point_service_pb2_grpc


def test_a_deadline_that_cannot_be_kept(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=2, shards=2)
    for attempt in (
        lambda: client.search(name, vectors=[[1, 2]], timeout=1e-6),
        lambda: client.upsert(name, ids=["a"], vectors=[[1, 2]], timeout=1e-6),
        lambda: client.count(name, timeout=1e-6),
    ):
        with pytest.raises(vectorfleet.DeadlineExceeded) as caught:
            attempt()
        assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert client.count(name) in (0, 1)


def test_wait_indexed_gives_up_in_time(client: vectorfleet.Client, name: str, rng: np.random.Generator) -> None:
    client.create_collection(name, dim=8, shards=2)
    client.upsert(name, ids=list(range(2_000)), vectors=rng.standard_normal((2_000, 8)))
    start_s = time.monotonic()
    with pytest.raises(vectorfleet.DeadlineExceeded):
        client.wait_indexed(name, timeout=0.05)
    assert time.monotonic() - start_s < 2.0


def test_a_call_without_a_deadline_is_served(cluster: LocalCluster, client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=2, shards=1)
    with grpc.insecure_channel(cluster.address) as channel:
        request = point_service_pb2.CountRequest(collection=name)
        assert point_service_pb2_grpc.PointServiceStub(channel).Count(request).points == 0


def test_every_call_ends_by_its_deadline_when_all_nodes_hang(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=2)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        client.create_collection("c", dim=2, shards=2)
        client.upsert("c", ids=["a"], vectors=[[1, 2]])
        for node in ("node-0", "node-1"):
            cluster.signal(node, signal.SIGSTOP)
        try:
            found = client.search("c", vectors=[[1, 2]], k=1, timeout=1.5)
            assert (found.hits, found.coverage.shards_answered) == ([[]], 0)
            for attempt in (
                lambda: client.search("c", vectors=[[1, 2]], min_coverage=0.5, timeout=1.5),
                lambda: client.upsert("c", ids=["b"], vectors=[[1, 2]], timeout=1.5),
                lambda: client.get("c", ids=["a"], timeout=1.5),
                lambda: client.count("c", timeout=1.5),
                lambda: next(iter(client.scroll("c", timeout=1.5))),
                lambda: client.create_collection("d", dim=2, timeout=1.5),
            ):
                start_s = time.monotonic()
                with pytest.raises((vectorfleet.DeadlineExceeded, vectorfleet.Unavailable)):
                    attempt()
                assert time.monotonic() - start_s < 3.0
        finally:
            for node in ("node-0", "node-1"):
                cluster.signal(node, signal.SIGCONT)
        until(lambda: client.count("c", timeout=5.0) in (1, 2), what="the nodes answer again")
