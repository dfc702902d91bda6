"""What breaks costs its own part of an answer, the answer says so, and it all comes back."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vectorfleet
from tests.cluster.conftest import PATIENCE_S, StartCluster
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

COUNT = 400
VECTORS = np.arange(COUNT, dtype=np.float32).reshape(-1, 1)
IDS = [f"{number:03d}" for number in range(COUNT)]
NAME = "points"


@pytest.fixture
def fleet(start_cluster: StartCluster) -> Iterator[tuple[LocalCluster, vectorfleet.Client]]:
    """A private cluster: two nodes, four shards, 400 points on a line."""
    cluster = start_cluster(nodes=2)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        client.create_collection(NAME, dim=1, metric="l2", shards=4)
        client.upsert(NAME, ids=IDS, vectors=VECTORS)
        yield cluster, client


def everything(client: vectorfleet.Client, **options: object) -> vectorfleet.SearchResult:
    return client.search(NAME, vectors=[[0.0]], k=COUNT + 100, exact=True, **options)


def whole(client: vectorfleet.Client) -> bool:
    found = everything(client, timeout=5.0)
    return found.coverage.complete and [hit.id for hit in found.hits[0]][:COUNT] == IDS


def test_a_killed_node_costs_its_shards_and_comes_back(fleet: tuple[LocalCluster, vectorfleet.Client]) -> None:
    cluster, client = fleet
    cluster.kill("node-1")

    found = everything(client, timeout=5.0)
    assert not found.coverage.complete
    assert (found.coverage.shards_total, found.coverage.shards_answered) == (4, 2)
    missing = {gap.shard: gap.reason for gap in found.coverage.missing}
    assert len(missing) == 2
    assert set(missing.values()) == {"SHARD_UNAVAILABLE"}
    there = [hit.id for hit in found.hits[0]]
    assert 100 < len(there) < 300
    assert there == sorted(there), "what could be reached is still in order"

    with pytest.raises(vectorfleet.Unavailable) as caught:
        everything(client, min_coverage=1.0, timeout=5.0)
    assert caught.value.reason == "TOO_FEW_SHARDS"
    assert everything(client, min_coverage=0.5, timeout=5.0).coverage.shards_answered == 2

    lost = sorted(set(IDS) - set(there))
    assert client.upsert(NAME, ids=there[:3], vectors=[[0.0], [1.0], [2.0]], timeout=5.0).upserted == 3
    for broken in (
        lambda: client.upsert(NAME, ids=lost[:1], vectors=[[1.0]], timeout=5.0),
        lambda: client.delete(NAME, ids=lost[:1], timeout=5.0),
        lambda: client.get(NAME, ids=lost[:1], timeout=5.0),
        lambda: client.count(NAME, timeout=5.0),
    ):
        with pytest.raises(vectorfleet.Unavailable) as caught:
            broken()
        assert caught.value.reason == "SHARD_UNAVAILABLE"
    assert client.get(NAME, ids=there[:1], timeout=5.0)[0].id == there[0]
    client.upsert(NAME, ids=there[:3], vectors=[[float(one)] for one in there[:3]], timeout=5.0)

    cluster.restart("node-1")
    until(lambda: whole(client), what="all points are there again")
    assert client.count(NAME) == COUNT


def test_a_frozen_node_does_not_hold_up_the_answer(fleet: tuple[LocalCluster, vectorfleet.Client]) -> None:
    cluster, client = fleet
    cluster.signal("node-0", signal.SIGSTOP)
    try:
        for _ in range(3):
            start_s = time.monotonic()
            found = everything(client, timeout=2.0)
            assert time.monotonic() - start_s < 2.0
            assert found.coverage.shards_answered == 2
            assert {gap.reason for gap in found.coverage.missing} <= {"DEADLINE_EXCEEDED", "SHARD_UNAVAILABLE"}
            assert len(found.hits[0]) > 100
        start_s = time.monotonic()
        with pytest.raises((vectorfleet.DeadlineExceeded, vectorfleet.Unavailable)):
            client.upsert(NAME, ids=IDS, vectors=VECTORS, timeout=2.0)
        assert time.monotonic() - start_s < 4.0
    finally:
        cluster.signal("node-0", signal.SIGCONT)
    until(lambda: whole(client), what="the node answers again")


def test_searches_and_writes_go_on_without_etcd(fleet: tuple[LocalCluster, vectorfleet.Client]) -> None:
    cluster, client = fleet
    cluster.kill("etcd")
    until(lambda: not client.cluster().coordinator_connected, what="the router notices")
    assert whole(client)
    client.upsert(NAME, ids=["extra"], vectors=[[1_000.0]])
    assert client.search(NAME, vectors=[[1_000.0]], k=1).ids[0, 0] == "extra"
    assert client.delete(NAME, ids=["extra"]).deleted == 1
    with pytest.raises(vectorfleet.Unavailable) as caught:
        client.create_collection("later", dim=1, timeout=5.0)
    assert caught.value.reason == "COORDINATOR_UNAVAILABLE"

    cluster.restart("etcd")

    def created() -> bool:
        # An earlier attempt may have come through, though its answer did not.
        with contextlib.suppress(vectorfleet.AlreadyExists):
            client.create_collection("later", dim=1, timeout=10.0)
        return True

    until(created, what="a new collection can be made")
    client.upsert("later", ids=["a"], vectors=[[1.0]])
    assert whole(client)


def test_a_killed_router_leaves_nothing_behind(fleet: tuple[LocalCluster, vectorfleet.Client]) -> None:
    cluster, client = fleet
    cluster.kill("router-0")
    with pytest.raises(vectorfleet.Unavailable) as caught:
        client.count(NAME, timeout=2.0)
    assert caught.value.reason == "UNREACHABLE"
    cluster.restart("router-0")
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as renewed:
        until(lambda: whole(renewed), what="the new router answers")
        renewed.create_collection("later", dim=1)


def test_a_node_that_dies_in_the_middle_of_writing_keeps_what_it_acknowledged(
    fleet: tuple[LocalCluster, vectorfleet.Client],
) -> None:
    cluster, client = fleet
    acknowledged: list[int] = []
    for number in range(5_000):
        if number == 150:
            cluster.kill("node-0")
        try:
            client.upsert(NAME, ids=[f"w{number}"], vectors=[[float(-number - 1)]], timeout=2.0)
            acknowledged.append(number)
        except (vectorfleet.Unavailable, vectorfleet.DeadlineExceeded):
            if number > 170:
                break
    cluster.restart("node-0")
    until(lambda: everything(client, timeout=5.0).coverage.complete, what="the node is back")
    there = {point.id for point in client.scroll(NAME, page_size=10_000)}
    assert {f"w{number}" for number in acknowledged} <= there
    assert set(IDS) <= there


def test_a_damaged_replica_is_out_of_service_and_the_others_serve(
    fleet: tuple[LocalCluster, vectorfleet.Client], tmp_path: Path
) -> None:
    cluster, client = fleet
    client.wait_indexed(NAME, timeout=60)
    cluster.kill("node-0")
    victims = sorted((tmp_path / "cluster-0" / "node-0").rglob("segments/*/vectors"))
    assert victims, "there are no segment files"
    victim = max(victims, key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-2] ^= 0x40  # a large part of the last vector's one component
    victim.chmod(0o644)
    victim.write_bytes(bytes(content))
    cluster.restart("node-0")

    wrong = []

    def three_answer() -> bool:
        found = everything(client, timeout=5.0)
        wrong.extend(hit for hit in found.hits[0] if hit.score != float(hit.id))
        return found.coverage.shards_answered == 3

    until(three_answer, what="the sound replicas serve")
    assert wrong == [], "a damaged vector is not answered with, not by the first search after the start either"
    (gap,) = everything(client, timeout=5.0).coverage.missing
    assert gap.reason == "DATA_LOSS"
    assert victim.name in gap.message
    states = [replica for shard in client.cluster().shards for replica in shard.replicas if shard.shard == gap.shard]
    assert [state.status for state in states] == ["failed"]


def test_a_node_that_lost_its_disk_does_not_answer_as_if_nothing_had_been_written(
    fleet: tuple[LocalCluster, vectorfleet.Client],
) -> None:
    cluster, client = fleet
    for restart in ("with a new folder", "with the folder that it has now"):
        cluster.kill("node-0")
        if restart == "with a new folder":
            shutil.rmtree(cluster.data / "node-0")
        cluster.restart("node-0")
        until(lambda: {"DATA_LOSS"} == {gap.reason for gap in everything(client, timeout=5.0).coverage.missing})
        found = everything(client, timeout=5.0)
        assert found.coverage.shards_answered == 2
        assert all("earlier data folder of node node-0" in gap.message for gap in found.coverage.missing)
        with pytest.raises(vectorfleet.VectorfleetError):
            client.count(NAME, timeout=5.0)
        # What is given to the node from now on, it holds.
        name = f"new-{len(restart)}"
        client.create_collection(name, dim=1, shards=2)
        client.upsert(name, ids=IDS, vectors=VECTORS)
        assert client.count(name) == COUNT
    assert client.count(f"new-{len('with a new folder')}") == COUNT
