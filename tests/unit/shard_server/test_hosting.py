"""What a node opens and closes as the shard map changes, and how it answers meanwhile. The engine is a fake."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard_server.backup.transfer import Transfer
from shard_server.budget import ByteBudget
from shard_server.codebook_store import CodebookStore, checksum_of
from shard_server.codebooks import Codebooks
from shard_server.data_dir import DataDir
from shard_server.hosted import HostedReplica
from shard_server.hosting import HostPools, ReplicaHost
from shard_server.peers import Peers
from shard_server.threads import WorkPool
from tests.unit.shard_server.fake_replica import TIMEOUT_S, FakeReplica, collection, deletion, until
from vectorfleet.cluster.shard_map import ClusterState, CodebookRecord, CollectionRecord, NodeInfo, RestoreRecord
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.errors import DataLoss, InternalError, ResourceExhausted, Unavailable, VectorfleetError


class FakeCodebook:
    """A file's content, loaded."""

    def __init__(self, content: bytes, version: int) -> None:
        self.content, self.version, self.checksum = content, version, checksum_of(content)


class FakePeers(Peers):
    """Nodes that have codebook files."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def codebook(self, address: str, uid: str, version: int, *, bytes_max: int, timeout_s: float) -> bytes:
        self.asked.append(address)
        if address not in self.files:
            raise Unavailable(f"{address} is away")
        return self.files[address]


class Stage:
    """A host with its surroundings; a test sets what opening a replica does."""

    def __init__(self, path: Path) -> None:
        self.data = DataDir(path, "n1")
        self.lifecycle = WorkPool("lifecycle", threads=4, waiting_max=100)
        self.commit = WorkPool("commit", threads=2, waiting_max=100)
        self.store = CodebookStore(self.data.codebooks)
        self.peers = FakePeers()
        self.opened: dict[tuple[str, int], FakeReplica] = {}
        self.openings: list[tuple[str, int, Any]] = []
        self.hold_opening = threading.Event()
        self.hold_opening.set()
        self.errors: dict[str, Exception] = {}
        self.work: list[HostedReplica] = []
        self.restorings: list[tuple[str, int]] = []
        self.transfers: list[Transfer] = []
        self.restored_seqno = 0
        self.hold_restoring = asyncio.Event()
        self.hold_restoring.set()
        load: Any = FakeCodebook
        opener: Any = self.open
        self.host = ReplicaHost(
            self.data,
            opener,
            self.restore,
            Codebooks(self.store, self.peers, self.lifecycle, load),
            self.peers,
            HostPools(self.lifecycle, self.commit),
            ByteBudget("writes", 1 << 20),
            self.work.append,
        )

    def open(self, directory: Path, record: CollectionRecord, shard: int, codebooks: Any) -> FakeReplica:
        assert self.hold_opening.wait(TIMEOUT_S)
        if (error := self.errors.get(record.uid)) is not None:
            raise error
        before = self.opened.get((record.uid, shard))
        assert before is None or before.closed, "two users of one folder"
        directory.mkdir(parents=True, exist_ok=True)
        self.openings.append((record.uid, shard, codebooks))
        replica = self.opened[record.uid, shard] = FakeReplica()
        return replica

    async def restore(self, record: CollectionRecord, shard: int, directory: Path, transfer: Transfer) -> int:
        self.restorings.append((record.uid, shard))
        self.transfers.append(transfer)
        await self.hold_restoring.wait()
        transfer.moved(1)
        await self.lifecycle.run(directory.mkdir)
        return self.restored_seqno

    def state(self, epoch: int, *records: CollectionRecord, **changes: Any) -> ClusterState:
        return ClusterState(epoch, collections={record.name: record for record in records}, **changes)

    async def find(self, uid: str, shard: int = 0, epoch: int = 0, **options: Any) -> HostedReplica:
        return await self.host.replica_for(uid, shard, epoch, **{"timeout_s": TIMEOUT_S, **options})


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.hold_opening.set()
    await stage.host.close()
    for pool in (stage.lifecycle, stage.commit):
        pool.close()
    stage.data.close()


async def reason(call: Any) -> str:
    with pytest.raises(VectorfleetError) as caught:
        await call
    return caught.value.reason


RESTORED = RestoreRecord(source="/backups", backup="b1", uid="u0")


async def test_a_restored_replica_is_fetched_once_and_before_it_is_opened(stage: Stage) -> None:
    stage.hold_restoring.clear()
    restoring = replace(collection("u1", ["n1"]), restoring=RESTORED)
    stage.host.apply(stage.state(5, restoring))
    await stage.host.all_opened()  # not waited for
    await until(lambda: stage.restorings, "asked for")
    assert stage.openings == []
    assert await reason(stage.find("u1", timeout_s=0.0)) == "SHARD_UNAVAILABLE"
    stage.hold_restoring.set()
    assert (await stage.find("u1")).serving
    stage.host.apply(stage.state(6))
    await until(lambda: stage.opened["u1", 0].closed, "closed")
    stage.host.apply(stage.state(7, restoring))
    assert (await stage.find("u1")).serving
    assert stage.restorings == [("u1", 0)], "its files are here"


async def test_a_restored_replica_of_another_length_than_its_backup_says_is_refused(stage: Stage) -> None:
    stage.restored_seqno = 7
    stage.host.apply(stage.state(5, replace(collection("u1", ["n1"]), restoring=RESTORED)))
    assert await reason(stage.find("u1")) == "BACKUP_DAMAGED"
    assert stage.opened["u1", 0].closed


async def test_a_collection_that_is_deleted_is_not_restored_to_the_end(stage: Stage) -> None:
    stage.hold_restoring.clear()
    stage.host.apply(stage.state(5, replace(collection("u1", ["n1"]), restoring=RESTORED)))
    await until(lambda: stage.transfers, "begun")
    stage.host.apply(stage.state(6, deleted_uids=frozenset({"u1"})))
    stage.hold_restoring.set()
    await until(lambda: not (stage.data.path / "replicas" / "u1").exists(), "removed")
    assert stage.openings == []


async def test_damage_found_at_work_puts_that_replica_out_of_service_and_no_other(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("bad", ["n1"]), collection("good", ["n1"])))
    await stage.host.all_opened()
    held = await stage.find("bad")
    stage.opened["bad", 0].error = DataLoss("segments/7/vectors does not match its checksum")
    with pytest.raises(DataLoss, match="segments/7/vectors"):
        await held.run(stage.lifecycle, None, lambda replica: replica.improve(0.0))
    stage.opened["bad", 0].error = None
    tracebacks = []
    for _ in range(3):
        with pytest.raises(DataLoss, match="segments/7/vectors") as caught:
            await stage.find("bad")
        tracebacks.append(len(caught.traceback))
        with pytest.raises(DataLoss, match="segments/7/vectors"):
            await held.write(deletion("a"), 1)
    assert len(set(tracebacks)) == 1, "an error that is raised again and again does not grow"
    assert (held.message, held.failure_reason) == (str(caught.value), "DATA_LOSS")
    assert (await (await stage.find("good")).write(deletion("a"), 1)).seqno == 1
    assert stage.opened["bad", 0].commits == []


async def test_the_damage_of_a_backup_is_not_the_replicas(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("u1", ["n1"])))
    await stage.host.all_opened()
    held = await stage.find("u1")
    stage.opened["u1", 0].error = DataLoss("an object", reason="BACKUP_DAMAGED")
    with pytest.raises(DataLoss):
        await held.run(stage.lifecycle, None, lambda replica: replica.improve(0.0))
    assert held.serving


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (ResourceExhausted("no room", reason="DISK_FULL"), "DISK_FULL"),
        (OSError(errno.EMFILE, "Too many open files"), "SHARD_UNAVAILABLE"),
    ],
    ids=repr,
)
async def test_a_replica_that_a_shortage_keeps_from_opening_opens_when_it_is_over(
    stage: Stage, error: Exception, said: str
) -> None:
    stage.errors["u1"] = error
    stage.host.apply(stage.state(5, collection("u1", ["n1"]), collection("u2", ["n1"])))
    await stage.host.all_opened()
    assert await reason(stage.find("u1")) == said
    assert (await stage.find("u2")).serving
    del stage.errors["u1"]
    (held,) = (replica for replica in stage.host.replicas if replica.uid == "u1")
    await until(lambda: held.serving, "opened after all")
    assert (await stage.find("u1") is held, held.message, held.failure_reason) == (True, "", "")


async def test_a_replica_that_waits_for_room_can_be_taken_away(stage: Stage) -> None:
    stage.errors["u1"] = OSError(errno.ENOSPC, "No space left on device")
    stage.host.apply(stage.state(5, collection("u1", ["n1"])))
    await stage.host.all_opened()
    stage.host.apply(stage.state(6, deleted_uids=frozenset({"u1"})))
    await until(lambda: not (stage.data.path / "replicas" / "u1").exists(), "removed")


async def test_it_opens_what_is_assigned_and_closes_what_no_longer_is(stage: Stage) -> None:
    mine, shared = collection("u1", ["n1"]), collection("u2", ["n2", "n1", "n3"])
    stage.host.apply(stage.state(5, mine, shared))
    await stage.host.all_opened()
    assert set(stage.opened) == {("u1", 0), ("u2", 1)}
    assert (await stage.find("u2", 1)).shard == 1
    stage.host.apply(stage.state(6, mine, shared))
    await stage.host.all_opened()
    assert len(stage.openings) == 2, "nothing is done twice"
    moved = collection("u2", ["n2", "n3", "n3"])
    stage.host.apply(stage.state(7, mine, moved))
    await until(lambda: stage.opened["u2", 1].closed, "closed")
    assert stage.data.replica("u2", 1).exists(), "files stay until the collection is deleted"
    assert await reason(stage.find("u2", 1)) == "STALE_SHARD_MAP"
    stage.host.apply(stage.state(8, mine, shared))
    await stage.host.all_opened()
    assert (await stage.find("u2", 1)).serving


async def test_only_deleted_collections_lose_their_files(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("u1", ["n1"]), collection("u2", ["n1"])))
    await stage.host.all_opened()
    stage.store.save("u1", 1, b"codebook")
    stage.host.apply(stage.state(6, deleted_uids=frozenset({"u1", "never-here"})))
    await until(lambda: stage.opened["u1", 0].closed and stage.opened["u2", 0].closed, "both closed")
    await until(lambda: not stage.data.replica("u1", 0).exists(), "removed")
    await until(lambda: stage.store.versions("u1") == [], "its codebooks removed, too")
    assert stage.data.replica("u2", 0).exists()


async def test_a_collection_deleted_while_the_node_was_away_is_removed_at_its_return(stage: Stage) -> None:
    stage.data.save_collection(collection("u1", ["n1"]))
    stage.data.replica("u1", 0).mkdir()
    await stage.host.open_known()
    stage.host.apply(stage.state(9, deleted_uids=frozenset({"u1"})))
    await until(lambda: not stage.data.replica("u1", 0).exists(), "removed")


async def test_what_the_map_knows_nothing_of_is_told_and_kept(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    for uid in ("u1", "u2", "u3"):
        stage.data.save_collection(collection(uid, ["n1"]))
        stage.data.replica(uid, 0).mkdir()
    await stage.host.open_known()
    assert stage.host.unknown_collections == (), "nobody has asked etcd yet"
    # etcd lost u1; u2 was deleted; u3 is another node's now, and u4 is new.
    records = collection("u3", ["n2"]), collection("u4", ["n1"])
    deleted = frozenset({"u2"})
    for epoch in (9, 10):
        stage.host.apply(stage.state(epoch, *records, deleted_uids=deleted))
        await stage.host.all_opened()
    assert stage.host.unknown_collections == ("u1",)
    assert sum("knows nothing of u1, of which" in record.message for record in caplog.records) == 1
    await until(lambda: not stage.data.replica("u2", 0).exists(), "removed")
    assert stage.data.replica("u1", 0).exists()
    stage.host.apply(stage.state(11, records[0], deleted_uids=deleted))
    await until(lambda: stage.opened["u4", 0].closed, "closed")
    assert stage.host.unknown_collections == ("u1", "u4")
    stage.host.apply(stage.state(12, *records, collection("u1", ["n1"]), deleted_uids=deleted))
    assert stage.host.unknown_collections == ()


async def test_what_was_held_serves_before_the_coordinator_answers(stage: Stage) -> None:
    stage.data.save_collection(collection("u1", ["n2", "n1"], term=4))
    stage.data.save_collection(collection("u2", ["n2"]))
    await stage.host.open_known()
    held = await stage.find("u1", 1, term=4)
    assert held.serving
    assert (await held.write(deletion("a"), 4)).seqno == 1
    assert [replica.uid for replica in stage.host.replicas] == ["u1"]


async def test_a_damaged_replica_answers_with_its_reason_and_others_go_on(stage: Stage) -> None:
    stage.errors["bad"] = DataLoss("segments/7/vectors is damaged")
    stage.errors["odd"] = RuntimeError("boom")
    stage.host.apply(stage.state(5, *(collection(uid, ["n1"]) for uid in ("bad", "odd", "good"))))
    await stage.host.all_opened()
    with pytest.raises(DataLoss, match="segments/7/vectors"):
        await stage.find("bad")
    with pytest.raises(InternalError, match="boom"):
        await stage.find("odd")
    assert (await stage.find("good")).serving
    messages = {held.uid: held.message for held in stage.host.replicas}
    assert "segments/7/vectors" in messages["bad"]
    assert messages["good"] == ""


async def test_a_failed_replica_keeps_nothing_of_the_calls_it_refused(stage: Stage) -> None:
    stage.errors["bad"] = DataLoss("segments/7/vectors is damaged")
    stage.host.apply(stage.state(5, collection("bad", ["n1"])))
    await stage.host.all_opened()
    (held,) = stage.host.replicas
    depths = []
    for _ in range(3):
        with pytest.raises(DataLoss) as caught:
            await held.opened()
        with pytest.raises(DataLoss):
            await held.run(stage.commit, None, FakeReplica.close)  # type: ignore[arg-type]
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1, "an exception that is raised again holds on to every stack it passed"


async def test_a_call_waits_for_the_map_and_then_for_the_replica(stage: Stage) -> None:
    stage.hold_opening.clear()
    call = asyncio.create_task(stage.find("u1", epoch=5))
    await asyncio.sleep(0)
    stage.host.apply(stage.state(4))
    stage.host.apply(stage.state(5, collection("u1", ["n1"])))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not call.done(), "it is still opening"
    stage.hold_opening.set()
    assert (await call).serving


async def test_what_is_not_held_is_refused_as_stale(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("u1", ["n2"])))
    assert await reason(stage.find("u1", epoch=5)) == "STALE_SHARD_MAP"
    assert await reason(stage.find("u1", epoch=6, timeout_s=0.05)) == "STALE_SHARD_MAP"


async def test_a_replica_that_takes_long_to_open_is_unavailable_not_stale(stage: Stage) -> None:
    stage.hold_opening.clear()
    stage.host.apply(stage.state(5, collection("u1", ["n1"])))
    assert await reason(stage.find("u1", epoch=5, timeout_s=0.05)) == "SHARD_UNAVAILABLE"


async def test_a_write_needs_the_primary_of_the_term(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("u1", ["n1"], term=3)))
    assert (await stage.find("u1", epoch=5, term=3)).serving
    for term in (2, 4):
        assert await reason(stage.find("u1", epoch=5, term=term)) == "STALE_SHARD_MAP"
    waiting = asyncio.create_task(stage.find("u1", epoch=6, term=4))
    await asyncio.sleep(0)
    stage.host.apply(stage.state(6, collection("u1", ["n1"], term=4)))
    assert (await waiting).serving


async def test_it_closes_only_after_the_last_thread_has_left(stage: Stage) -> None:
    stage.host.apply(stage.state(5, collection("u1", ["n1"])))
    held = await stage.find("u1", epoch=5)
    replica = stage.opened["u1", 0]
    replica.held.clear()
    write = asyncio.create_task(held.write(deletion("a"), 1))
    await asyncio.sleep(0)
    stage.host.apply(stage.state(6))
    await asyncio.sleep(0.05)
    assert not replica.closed
    assert await reason(stage.find("u1", epoch=6)) == "STALE_SHARD_MAP"
    replica.held.set()
    assert (await write).seqno == 1
    await until(lambda: replica.closed, "closed")


def with_codebook(record: CollectionRecord, version: int, content: bytes, node: str = "n2") -> CollectionRecord:
    return replace(record, codebook=CodebookRecord(version, checksum_of(content), 4, 2, 100, node))


async def test_a_new_codebook_is_fetched_checked_kept_and_handed_out(stage: Stage) -> None:
    record = collection("u1", ["n1", "n1"])
    stage.host.apply(stage.state(5, record))
    await stage.host.all_opened()
    nodes = {name: NodeInfo(name, f"{name}:1") for name in ("n0", "n1", "n2", "n3")}
    stage.peers.files = {"n2:1": b"not what the map says", "n3:1": b"one"}
    stage.host.apply(stage.state(6, with_codebook(record, 1, b"one"), nodes=nodes))
    await until(lambda: all(replica.codebooks for replica in stage.opened.values()), "handed out")
    assert stage.peers.asked[0] == "n2:1", "the one that trained it is asked first"
    assert "n1:1" not in stage.peers.asked
    assert stage.store.load("u1", 1) == b"one"
    stage.store.save("u1", 0, b"zero")
    stage.opened["u1", 1].codebooks_in_use = frozenset({1})
    stage.peers.files = {"n2:1": b"two"}
    stage.host.apply(stage.state(7, with_codebook(record, 2, b"two"), nodes=nodes))
    await until(lambda: all(len(replica.codebooks) == 2 for replica in stage.opened.values()), "the next one, too")
    await until(lambda: stage.store.versions("u1") == [1, 2], "what no segment is encoded with is dropped")
    stage.opened["u1", 1].codebooks_in_use = frozenset({2})
    stage.host.apply(stage.state(8, with_codebook(record, 2, b"two"), nodes=nodes))
    await until(lambda: stage.store.versions("u1") == [2], "the older one dropped")


async def test_a_codebook_that_nobody_has_is_asked_for_again(stage: Stage) -> None:
    record = collection("u1", ["n1"])
    nodes = {"n2": NodeInfo("n2", "n2:1")}
    stage.host.apply(stage.state(5, with_codebook(record, 1, b"one"), nodes=nodes))
    await until(lambda: stage.peers.asked, "asked once")
    assert (await stage.find("u1")).serving, "it serves without one"
    stage.peers.files["n2:1"] = b"one"
    await until(lambda: stage.opened["u1", 0].codebooks, "fetched at last")


async def test_a_codebook_on_disk_is_there_when_the_replica_opens(stage: Stage) -> None:
    stage.store.save("u1", 1, b"one")
    stage.store.save("u1", 0, b"zero")
    stage.store.save("u1", 2, b"trained here, never agreed on")
    stage.host.apply(stage.state(5, with_codebook(collection("u1", ["n1"]), 1, b"one")))
    await stage.host.all_opened()
    assert [one.content for one in stage.openings[0][2]] == [b"zero", b"one"]
    assert stage.peers.asked == []


async def test_an_older_codebook_serves_until_the_current_one_comes(stage: Stage) -> None:
    stage.store.save("u1", 1, b"one")
    record = with_codebook(collection("u1", ["n1"]), 2, b"two")
    stage.host.apply(stage.state(5, record))
    await stage.host.all_opened()
    assert stage.openings[0][2][-1].version == 1
    stage.peers.files["n2:1"] = b"two"
    stage.host.apply(stage.state(6, record, nodes={"n2": NodeInfo("n2", "n2:1")}))
    await until(lambda: stage.opened["u1", 0].codebooks, "handed out")
    assert stage.opened["u1", 0].codebooks[0].version == 2  # type: ignore[attr-defined]


async def test_it_follows_a_coordinator_and_remembers_each_change(stage: Stage) -> None:
    cluster = StaticCluster()
    following = asyncio.create_task(stage.host.follow(StaticCoordinator(cluster)))
    elsewhere = StaticCoordinator(cluster)
    await elsewhere.create_collection(collection("u1", ["n1"]))
    await until(lambda: ("u1", 0) in stage.opened, "opened")
    changed = replace(cluster.state.collections["u1"], replicas=2)
    await elsewhere.update_collection(changed)
    await until(lambda: [one.replicas for one in stage.data.known_collections()] == [2], "remembered")
    await elsewhere.delete_collection(cluster.state.collections["u1"])
    await until(lambda: stage.data.stored_uids() == set(), "removed")
    following.cancel()
    await asyncio.wait([following])
