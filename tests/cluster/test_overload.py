"""A cluster that is asked for too much: what would grow is refused with numbers, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import psutil
import pytest

import vectorfleet
from loadtest import abuse
from tests.cluster.conftest import StartCluster
from vectorfleet.local import LocalCluster
from vectorfleet.local.cluster import NODES_NICENESS

DIM = 1024
MEMORY = 320 << 20
UNSEALED = ("--seal-age-s", "3600", "--seal-points", "1000000", "--seal-bytes", str(1 << 40))
"""Buffers only grow."""


def test_a_node_at_its_ceiling_refuses_writes_and_goes_on_searching_and_deleting(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=1, shard_args=(*UNSEALED, "--memory-limit", str(MEMORY)))
    vectors = np.random.default_rng(1).standard_normal((1_000, DIM), np.float32)
    with vectorfleet.Client(cluster.address, timeout=60.0) as client:
        client.create_collection("c", dim=DIM, metric="l2", shards=1)
        written = 0

        def fill() -> None:
            nonlocal written
            while written < MEMORY // (4 * DIM):
                client.upsert("c", ids=range(written, written + 1_000), vectors=vectors)
                written += 1_000

        with pytest.raises(vectorfleet.ResourceExhausted) as refused:
            fill()
        (node,) = client.cluster().nodes
        assert refused.value.reason == "MEMORY_FULL"
        assert str(node.memory_limit_bytes) in refused.value.message, "with the limit"
        assert written > 0
        assert client.count("c") == written, "what was refused has left no trace"
        assert node.memory_limit_bytes == int(MEMORY * 0.9)
        assert 0 < node.memory_limit_bytes - node.memory_used_bytes < vectors.nbytes * 16
        assert node.resident_bytes - node.mapped_resident_bytes < MEMORY

        found = client.search("c", vectors=vectors[:1], k=3)
        assert found.coverage.shards_answered == 1
        assert client.delete("c", ids=range(500)).deleted == 500
        assert client.count("c") == written - 500
        with pytest.raises(vectorfleet.ResourceExhausted):
            client.upsert("c", ids=range(10_000), vectors=np.repeat(vectors, 10, axis=0))


async def test_strangers_cost_nobody_but_themselves(cluster: LocalCluster, new_name: Callable[[], str]) -> None:
    name = new_name()
    with vectorfleet.Client(cluster.address, timeout=60.0) as client:
        await asyncio.to_thread(abuse.prepare, client, name)
    strength = abuse.Strength(connections=300, silent=50, requests=1_000, message_bytes=72 << 20, unread=50)
    told = await abuse.suffer(cluster.address, name, strength)
    for kind, (victim, _) in told.items():
        assert not victim.failures, kind
        assert victim.answered > 1, kind
    assert told["huge_message"][1] == {"MESSAGE_TOO_LARGE": 1}
    assert told["long_headers"][1] == {"OVERLOADED": 100}
    assert told["tiny_requests"][1] == {"OK": 1_000}
    assert all(psutil.pid_exists(child.pid or 0) for child in cluster.processes.values())


def test_a_router_comes_before_the_nodes_that_share_its_cores(cluster: LocalCluster) -> None:
    niceness = {name: psutil.Process(child.pid).nice() for name, child in cluster.processes.items()}
    assert niceness["node-0"] == niceness["router-0"] + NODES_NICENESS
