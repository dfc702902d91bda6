"""Backups of real clusters: what was there is there again, elsewhere; half of one never looks like a whole."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

import vectorfleet
from tests.cluster.conftest import PATIENCE_S, QUICK, StartCluster
from tests.cluster.waiting import until
from vectorfleet.cli import main
from vectorfleet.cluster.placement import HashPlacement, hash_ranges
from vectorfleet.cluster.shard_map import ShardAssignment
from vectorfleet.local import LocalCluster

DIM = 8


@pytest.fixture
def place(cluster: LocalCluster, name: str) -> Path:
    """A destination of this test's own, where the shared cluster may keep backups."""
    return cluster.data / "backups" / name


def manifests(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file() and "objects" not in path.relative_to(place).parts]


def objects(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (place / "objects").rglob("*") if path.is_file()}


def times(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in objects(place)}


def contents(client: vectorfleet.Client, name: str) -> list[tuple[object, ...]]:
    walked = client.scroll(name, page_size=10_000, with_vector=True)
    return [(p.id, p.version, p.payload, p.vector.tobytes() if p.vector is not None else b"") for p in walked]


def told(cluster: LocalCluster, *arguments: str) -> Any:
    """What a command of ours says."""
    done = CliRunner().invoke(main, [*arguments, "--address", cluster.address, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def names_of_each_shard(shards: int, count: int) -> list[list[str]]:
    """Ids that the placement gives to each shard, in the order in which they are written."""
    placement = HashPlacement([ShardAssignment(n, *ends) for n, ends in enumerate(hash_ranges(shards))])
    ids = [f"p{number:06d}" for number in range(shards * count * 2)]
    owners = placement.shards_of(ids)
    return [[one for one, owner in zip(ids, owners, strict=True) if owner == shard][:count] for shard in range(shards)]


# ---------------------------------------------------------------------------------------------------------- what comes back


def test_a_backup_during_ingest_holds_a_prefix_of_each_shard_on_any_number_of_nodes(
    cluster: LocalCluster, client: vectorfleet.Client, name: str, place: Path, start_cluster: StartCluster
) -> None:
    shards, before = 4, 150
    client.create_collection(name, dim=1, shards=shards)
    ids = names_of_each_shard(shards, 4_000)
    acknowledged = [0] * shards
    stop = threading.Event()

    def write(shard: int) -> None:
        # One point a write, one write at a time: the n-th write of a shard is its seqno n.
        with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as own:
            for number, point_id in enumerate(ids[shard], 1):
                if stop.is_set():
                    return
                own.upsert(name, ids=[point_id], vectors=[[number]], payloads=[{"text": f"the {number}th"}])
                acknowledged[shard] = number

    with ThreadPoolExecutor(shards) as writers:
        running = [writers.submit(write, shard) for shard in range(shards)]
        try:
            until(lambda: min(acknowledged) >= before, what="writes before the backup")
            floor = list(acknowledged)
            made = client.create_backup(str(place), collections=[name])
            during = list(acknowledged)
            until(lambda: all(now > then for now, then in zip(acknowledged, during, strict=True)), what="writes go on")
        finally:
            stop.set()
        for one in running:
            one.result()

    (kept,) = made.collections
    assert kept.name == name
    assert all(low <= seqno for low, seqno in zip(floor, kept.seqnos, strict=True)), "what was acknowledged is in it"
    elsewhere = start_cluster(nodes=3, shard_args=(*QUICK, "--backup-root", str(cluster.data / "backups")))
    with vectorfleet.Client(elsewhere.address, timeout=PATIENCE_S) as other:
        assert other.restore_backup(str(place)) == vectorfleet.RestoredBackup(made.id, (name,))
        there = {point.id: point for point in other.scroll(name, page_size=10_000, with_vector=True)}
        for shard, seqno in enumerate(kept.seqnos):
            mine = [point_id for point_id in ids[shard] if point_id in there]
            assert mine == ids[shard][:seqno], f"shard {shard} holds a prefix, without a hole"
            assert [there[point_id].version for point_id in mine] == list(range(1, seqno + 1))
            assert [there[point_id].vector[0] for point_id in mine] == list(range(1, seqno + 1))
            assert there[mine[-1]].payload == {"text": f"the {seqno}th"}
        assert len({state.replicas[0].node for state in other.cluster().shards}) == 3, "spread over all nodes"
        other.upsert(name, ids=["after"], vectors=[[0.0]])
        assert other.search(name, vectors=[[0.0]], k=1).hits[0][0].id == "after"
        other.delete_collection(name)


def test_a_trained_collection_comes_back_with_its_codebook_codes_and_deletes(
    client: vectorfleet.Client, new_name: Callable[[], str], name: str, place: Path, rng: np.random.Generator
) -> None:
    copy = new_name()
    index = vectorfleet.IndexOptions(train_points=1_000)
    client.create_collection(name, dim=DIM, metric="cosine", shards=2, index=index)
    vectors = rng.standard_normal((5_000, DIM)).astype(np.float32)
    client.upsert(name, ids=range(5_000), vectors=vectors, payloads=[{"n": n} for n in range(5_000)])
    client.wait_indexed(name)
    client.delete(name, ids=range(0, 5_000, 10))
    client.upsert(name, ids=range(0, 5_000, 100), vectors=-vectors[::100])
    told_of: list[vectorfleet.TransferProgress] = []
    made = client.create_backup(str(place), collections=[name], on_progress=told_of.append)
    assert (told_of[-1].shards_done, told_of[-1].shards_total) == (2, 2)
    assert told_of[-1].bytes_done == told_of[-1].bytes_total == made.new_bytes
    assert made.new_bytes == sum(objects(place).values())
    assert made.new_objects == len(objects(place))
    client.restore_backup(str(place), backup=made.id, collections={name: copy}, on_progress=told_of.append)
    assert (told_of[-1].shards_done, told_of[-1].shards_total) == (2, 2)
    assert told_of[-1].bytes_done == told_of[-1].bytes_total >= made.bytes
    was, now = client.get_collection(name), client.get_collection(copy)
    assert (now.dim, now.metric, now.shards, now.index) == (was.dim, was.metric, was.shards, was.index)
    assert now.uid != was.uid
    assert now.progress is not None
    assert was.progress is not None
    assert now.progress.codebook == was.progress.codebook, "not trained again"
    assert now.progress.codebook.version >= 1
    assert contents(client, copy) == contents(client, name)
    for one in (was, now):
        client.wait_indexed(one.name)
    exact, found = (client.search(copy, vectors=vectors[:50], k=10, exact=exact) for exact in (True, False))
    assert np.array_equal(exact.ids, client.search(name, vectors=vectors[:50], k=10, exact=True).ids)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.ids.tolist(), found.ids.tolist(), strict=True)]
    assert sum(hits) >= 0.9 * 10 * 50, "the codes fit the codebook"


def test_the_next_backup_sends_what_is_new(
    client: vectorfleet.Client, name: str, place: Path, rng: np.random.Generator
) -> None:
    client.create_collection(name, dim=64, shards=2, index=vectorfleet.IndexOptions(kind="flat"))
    client.upsert(name, ids=range(6_000), vectors=rng.standard_normal((6_000, 64)).astype(np.float32))
    client.wait_indexed(name)
    first = client.create_backup(str(place), collections=[name])
    there, then = objects(place), times(place)
    assert first.new_bytes == sum(there.values()) > 6_000 * 64 * 4
    client.upsert(name, ids=["new"], vectors=np.ones((1, 64)))
    second = client.create_backup(str(place), collections=[name])
    added = {path: size for path, size in objects(place).items() if path not in there}
    assert (second.new_objects, second.new_bytes) == (len(added), sum(added.values()))
    assert 0 < second.new_bytes < first.new_bytes / 20
    assert second.bytes > first.bytes - first.new_bytes / 20
    assert [path.name for path in sorted(manifests(place))] == [f"{one.id}.jsonl" for one in (first, second)]
    assert {path: time for path, time in times(place).items() if path in there} == then, "nothing is written again"


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_damage_is_found_and_named_and_nothing_is_left_of_the_restore(
    cluster: LocalCluster, client: vectorfleet.Client, new_name: Callable[[], str], name: str, place: Path
) -> None:
    copy = new_name()
    client.create_collection(name, dim=DIM, shards=2)
    client.upsert(name, ids=range(300), vectors=np.ones((300, DIM)))
    client.wait_indexed(name)
    made = client.create_backup(str(place), collections=[name])
    folders = {path: set(path.iterdir()) for path in cluster.data.glob("node-*/replicas")}
    sizes = sorted(objects(place), key=lambda path: path.stat().st_size)
    lists = [path for path in sizes if path.read_bytes().startswith(b'{"files"')]
    assert len(lists) == 2
    for victim in (sizes[-1], lists[0], manifests(place)[0]):
        whole = victim.read_bytes()
        at = len(whole) // 2
        for damaged in (whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :], whole[:-5], None):
            if damaged is None:
                victim.unlink()
            else:
                victim.write_bytes(damaged)
            with pytest.raises(vectorfleet.VectorfleetError) as caught:
                client.restore_backup(str(place), collections={name: copy})
            if damaged is None and victim == manifests(place):
                assert caught.value.reason == "BACKUP_NOT_FOUND"
            elif victim.suffix != ".jsonl" or damaged is not None:
                assert caught.value.reason == "BACKUP_DAMAGED"
                assert isinstance(caught.value, vectorfleet.DataLoss)
                assert str(victim.relative_to(place)) in caught.value.message
            assert copy not in {one.name for one in client.list_collections()}
            assert copy not in {shard.collection for shard in client.cluster().shards}
        victim.write_bytes(whole)
    until(
        lambda: {path: set(path.iterdir()) for path in cluster.data.glob("node-*/replicas")} == folders,
        what="the files of failed restores are removed",
    )
    assert client.restore_backup(str(place), backup=made.id, collections={name: copy}).collections == (copy,)
    assert contents(client, copy) == contents(client, name)


def test_a_collection_that_exists_is_not_replaced(
    cluster: LocalCluster, client: vectorfleet.Client, new_name: Callable[[], str], name: str, place: Path
) -> None:
    client.create_collection(name, dim=1, shards=2)
    client.upsert(name, ids=["a"], vectors=[[1.0]])
    made = told(cluster, "backup", str(place), "--collection", name)
    client.upsert(name, ids=["b"], vectors=[[2.0]])
    for arguments, reason in (
        ({}, "COLLECTION_EXISTS"),
        ({"collections": [name]}, "COLLECTION_EXISTS"),
        ({"collections": {name: "../etc"}}, "INVALID_FIELD"),
        ({"collections": ["nowhere"]}, "COLLECTION_NOT_FOUND"),
        ({"backup": "20260101T000000.000Z-000000"}, "BACKUP_NOT_FOUND"),
        ({"backup": "../x"}, "INVALID_FIELD"),
    ):
        with pytest.raises(vectorfleet.VectorfleetError) as caught:
            client.restore_backup(str(place), **arguments)
        assert caught.value.reason == reason, caught.value
    assert client.count(name) == 2
    copy = new_name()
    restored = told(cluster, "restore", str(place), "--collection", f"{name}={copy}", "--backup", made["id"])
    assert restored == {"id": made["id"], "collections": [copy]}
    assert client.count(copy) == 1


def test_nodes_write_and_read_below_their_roots_alone(
    client: vectorfleet.Client, name: str, place: Path, tmp_path: Path
) -> None:
    client.create_collection(name, dim=1, shards=1)
    for elsewhere in (tmp_path / "x", place.parents[1], place / ".." / ".." / "x"):
        for call in (client.create_backup, client.restore_backup):
            with pytest.raises(vectorfleet.FailedPrecondition) as caught:
                call(str(elsewhere))
            assert caught.value.reason == "DESTINATION_REFUSED"
            assert "--backup-root" in caught.value.message
    for nonsense in ("", "relative", "s3://b/../c"):
        with pytest.raises(vectorfleet.InvalidRequest):
            client.create_backup(nonsense)
    assert not (tmp_path / "x").exists()
    with pytest.raises(vectorfleet.NotFound) as caught:
        client.create_backup(str(place), collections=["nowhere"])
    assert caught.value.reason == "COLLECTION_NOT_FOUND"
    with pytest.raises(vectorfleet.NotFound) as caught:
        client.restore_backup(str(place))
    assert caught.value.reason == "BACKUP_NOT_FOUND"


# ---------------------------------------------------------------------------------------------------------- what breaks


@pytest.fixture
def fleet(start_cluster: StartCluster) -> Iterator[tuple[LocalCluster, vectorfleet.Client, Path]]:
    """A private cluster with a collection on each of its two nodes, and a complete backup of the first."""
    cluster = start_cluster(nodes=2)
    place = cluster.data / "backups" / "here"
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        for name in ("first", "second"):
            client.create_collection(name, dim=DIM, shards=1)
            client.upsert(name, ids=range(1_000), vectors=np.ones((1_000, DIM)))
            client.wait_indexed(name)
        client.create_backup(str(place), collections=["first"])
        yield cluster, client, place


def node_of(client: vectorfleet.Client, name: str) -> str:
    (node,) = {shard.replicas[0].node for shard in client.cluster().shards if shard.collection == name}
    return node


def test_a_node_that_dies_in_the_middle_leaves_nothing_that_looks_complete(
    fleet: tuple[LocalCluster, vectorfleet.Client, Path],
) -> None:
    cluster, client, place = fleet
    victim, before = node_of(client, "second"), manifests(place)
    assert victim != node_of(client, "first")
    cluster.signal(victim, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as caller:
        told_of: list[vectorfleet.TransferProgress] = []
        call = caller.submit(client.create_backup, str(place), on_progress=told_of.append)
        try:
            until(lambda: told_of or call.done(), what="the backup is under way")
        finally:
            cluster.kill(victim)
        with pytest.raises(vectorfleet.Unavailable):
            call.result(timeout=PATIENCE_S)
    assert manifests(place) == before
    with pytest.raises(vectorfleet.NotFound) as caught:
        client.restore_backup(str(place), collections={"second": "copy"})
    assert caught.value.reason == "COLLECTION_NOT_FOUND", "the newest backup is the one of the first collection"

    # What a copy leaves that is killed between two of its bytes.
    (folder,) = (place / "objects").glob("*/0")
    (folder / ".0123456789abcdef-100.k2x9").write_bytes(b"half")
    cluster.restart(victim)
    until(lambda: client.count("second", timeout=5.0) == 1_000, what="the node is back")
    again = client.create_backup(str(place))
    assert len(manifests(place)) == 2
    assert 0 < again.new_bytes < again.bytes, "it goes on with what is there"
    client.restore_backup(str(place), collections={"first": "a", "second": "b"})
    assert contents(client, "a") == contents(client, "first")
    assert contents(client, "b") == contents(client, "second")
    until(
        lambda: not list(cluster.data.glob("node-*/replicas/*/*/snapshots/*")), what="no snapshot is left on the nodes"
    )


def test_a_restore_that_is_given_up_leaves_nothing_and_one_whose_router_dies_is_finished(
    fleet: tuple[LocalCluster, vectorfleet.Client, Path],
) -> None:
    cluster, client, place = fleet
    visible = {"first"}

    def seen() -> set[str]:
        return {one.name for one in client.list_collections()}

    def mapped() -> set[str]:
        return {shard.collection for shard in client.cluster(timeout=PATIENCE_S).shards}

    names = {"first": "copy"}
    client.delete_collection("second")  # so that its node is the one that takes what is restored
    victim = ({"node-0", "node-1"} - {node_of(client, "first")}).pop()
    cluster.signal(victim, signal.SIGSTOP)
    try:
        with pytest.raises(vectorfleet.DeadlineExceeded):
            client.restore_backup(str(place), collections=names, timeout=2.0)
        assert seen() == visible
        until(lambda: mapped() == visible, what="it is removed")
    finally:
        cluster.signal(victim, signal.SIGCONT)
    until(lambda: all(node.live for node in client.cluster().nodes), what="the node is back")

    cluster.signal(victim, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(client.restore_backup, str(place), collections=names)
            until(lambda: "copy" in mapped(), what="it has begun")
            assert seen() == visible, "nobody sees it yet"
            with pytest.raises(vectorfleet.NotFound, match="being restored"):
                client.count("copy")
            with pytest.raises(vectorfleet.AlreadyExists):
                client.create_collection("copy", dim=1)
            cluster.kill("router-0")
            with pytest.raises(vectorfleet.Unavailable):
                call.result(timeout=PATIENCE_S)
    finally:
        cluster.signal(victim, signal.SIGCONT)
    cluster.restart("router-0")
    until(seen, what="the router is reached again")  # gRPC waits before it connects anew
    assert seen() == visible
    client.restore_backup(str(place), collections=names)
    assert node_of(client, "copy") == victim
    assert contents(client, "copy") == contents(client, "first")
    until(
        lambda: len(list(cluster.data.glob("node-*/replicas/*"))) == 2,
        what="nothing is left of the one that was given up",
    )


# ---------------------------------------------------------------------------------------------------------- object stores


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, boto3.client]]:
    """A bucket of a local S3 server, which processes started from now on reach as botocore's environment says."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bucket")
    yield "bucket", s3
    s3.close()
    server.stop()


def test_an_object_store_takes_backups_and_gives_them_back(
    bucket: tuple[str, boto3.client], start_cluster: StartCluster, rng: np.random.Generator
) -> None:
    name, s3 = bucket
    place = f"s3://{name}/backups/here"
    cluster = start_cluster(nodes=1, shard_args=(*QUICK, "--backup-root", f"s3://{name}/backups"))
    vectors = rng.standard_normal((2_000, DIM)).astype(np.float32)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        client.create_collection("texts", dim=DIM, shards=2)
        client.upsert(
            "texts", ids=range(2_000), vectors=vectors, payloads=[{"text": f"text {n}"} for n in range(2_000)]
        )
        client.wait_indexed("texts")
        first = client.create_backup(place)
        second = client.create_backup(place)
        assert second.new_bytes < first.new_bytes / 5
        keys = {one["Key"]: one["Size"] for one in s3.list_objects_v2(Bucket=name)["Contents"]}
        kept = {key: size for key, size in keys.items() if key.startswith("backups/here/objects/")}
        assert sum(kept.values()) == first.new_bytes + second.new_bytes
        assert set(keys) - set(kept) == {f"backups/here/backups/{one.id}.jsonl" for one in (first, second)}
        client.restore_backup(place, collections={"texts": "copy"})
        assert contents(client, "copy") == contents(client, "texts")

        victim = max(kept, key=lambda key: kept[key])
        body = bytearray(s3.get_object(Bucket=name, Key=victim)["Body"].read())
        body[-1] ^= 1
        s3.put_object(Bucket=name, Key=victim, Body=bytes(body))
        with pytest.raises(vectorfleet.DataLoss) as caught:
            client.restore_backup(place, collections={"texts": "damaged"})
        assert victim.removeprefix("backups/here/") in caught.value.message
        with pytest.raises(vectorfleet.FailedPrecondition) as refused:
            client.create_backup(f"s3://{name}/elsewhere")
        assert refused.value.reason == "DESTINATION_REFUSED"
        assert json.loads(s3.get_object(Bucket=name, Key=f"backups/here/backups/{first.id}.jsonl")["Body"].readline())
