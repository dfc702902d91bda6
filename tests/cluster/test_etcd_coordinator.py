"""The coordinator against a real etcd that stays well: membership, compare-and-swap, election, what it does with garbage."""

from __future__ import annotations

import asyncio
import itertools
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.etcd_process import EtcdProcess, eventually
from vectorfleet.cluster.coordinator import Conflict
from vectorfleet.cluster.etcd import EtcdCoordinator
from vectorfleet.cluster.etcd_client import PAGE_KEYS, EtcdClient
from vectorfleet.cluster.placement import hash_ranges
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.errors import ResourceExhausted, Unavailable

pytestmark = pytest.mark.cluster
Join = Callable[[], Awaitable[EtcdCoordinator]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with EtcdProcess(tmp_path_factory.mktemp("etcd") / "data") as member:
        yield member


@pytest.fixture
def prefix() -> str:
    return f"/t-{uuid.uuid4().hex[:12]}/"


@pytest.fixture
async def client(etcd: EtcdProcess) -> AsyncIterator[EtcdClient]:
    one = EtcdClient([etcd.address])
    yield one
    await one.close()


@pytest.fixture
async def join(etcd: EtcdProcess, prefix: str) -> AsyncIterator[Join]:
    """Makes started coordinators, each one a process's; closed after the test."""
    made: list[EtcdCoordinator] = []

    async def start() -> EtcdCoordinator:
        made.append(EtcdCoordinator([etcd.address], prefix, lease_ttl_s=3))
        await made[-1].start()
        return made[-1]

    yield start
    for one in made:
        await one.close()


async def sees(one: EtcdCoordinator, condition: Callable[[EtcdCoordinator], object], within_s: float = 15) -> None:
    """Waits for the coordinator's state to be as wanted."""
    await eventually(lambda: condition(one), within_s)


def record(name: str = "films", uid: str = "", shards: int = 2) -> CollectionRecord:
    ranges = tuple(ShardAssignment(number, *ends) for number, ends in enumerate(hash_ranges(shards)))
    return CollectionRecord(name, uid or uuid.uuid4().hex, 8, 1, ranges)


# ---------------------------------------------------------------------- membership


async def test_a_node_is_there_until_it_closes(join: Join) -> None:
    router, node = await join(), await join()
    info = NodeInfo("n1", "127.0.0.1:7001", "1.0")
    await node.register(info)
    assert node.state.nodes["n1"] == info, "who registers sees itself at once"
    await sees(router, lambda one: one.state.nodes.get("n1") == info)
    await node.close()
    await sees(router, lambda one: not one.state.nodes, within_s=2)  # at once, not when the lease lapses


async def test_a_node_may_change_its_address(join: Join) -> None:
    router, node = await join(), await join()
    await node.register(NodeInfo("n1", "127.0.0.1:7001"))
    await node.register(NodeInfo("n1", "127.0.0.1:7002"))
    await sees(router, lambda one: one.state.nodes["n1"].address == "127.0.0.1:7002")


async def test_a_lost_lease_is_granted_again_with_all_that_stood_under_it(
    join: Join, client: EtcdClient, prefix: str
) -> None:
    watcher, node = await join(), await join()
    await node.register(NodeInfo("n1", "127.0.0.1:7001"))
    await node.campaign("r1")
    await sees(node, lambda one: one.leading)
    _, entries = await client.load(prefix)
    (lost,) = {entry.lease for entry in entries}
    epoch = watcher.state.epoch
    await client.revoke(lost, 5)
    await sees(watcher, lambda one: one.state.epoch > epoch + 1 and "n1" in one.state.nodes)
    await sees(watcher, lambda one: one.state.controller == "r1")
    await sees(node, lambda one: one.leading)
    _, entries = await client.load(prefix)
    assert len(entries) == 2
    assert lost not in {entry.lease for entry in entries}


async def test_keys_that_an_operator_removed_by_hand_come_back(join: Join, etcd: EtcdProcess, prefix: str) -> None:
    node = await join()
    await node.register(NodeInfo("n1", "127.0.0.1:7001"))
    await node.campaign("r1")
    await sees(node, lambda one: one.leading)
    epoch = node.state.epoch
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", prefix)
    await sees(node, lambda one: one.state.epoch > epoch + 1 and "n1" in one.state.nodes and one.leading)


async def test_a_second_process_of_the_same_node_id_is_reported(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    first, second = await join(), await join()
    await first.register(NodeInfo("n1", "127.0.0.1:7001"))
    await second.register(NodeInfo("n1", "127.0.0.1:7002"))
    await sees(first, lambda one: one.state.nodes["n1"].address == "127.0.0.1:7002")
    assert "another process registered as node n1" in caplog.text


# ---------------------------------------------------------------------- collections


async def test_a_collection_lives_and_dies(join: Join) -> None:
    one, other = await join(), await join()
    made = record()
    await one.create_collection(made)
    stored = one.state.collections["films"]  # visible to who made it as soon as the call returns
    assert stored == replace(made, mod_revision=stored.mod_revision)
    assert stored.mod_revision > 0
    await sees(other, lambda it: it.state.collections.get("films") == stored)
    await other.update_collection(replace(stored, dim=9))
    await sees(one, lambda it: it.state.collections["films"].dim == 9)
    await one.delete_collection(one.state.collections["films"])
    await sees(other, lambda it: not it.state.collections)
    assert other.state.deleted_uids == {made.uid}, "in the same revision as the removal"


async def test_a_change_of_what_changed_meanwhile_is_refused(join: Join) -> None:
    one, other = await join(), await join()
    await one.create_collection(record())
    with pytest.raises(Conflict):
        await other.create_collection(record())
    stored = one.state.collections["films"]
    await one.update_collection(replace(stored, dim=9))
    with pytest.raises(Conflict):
        await other.update_collection(replace(stored, dim=10))
    with pytest.raises(Conflict):
        await other.delete_collection(stored)
    await one.delete_collection(one.state.collections["films"])
    with pytest.raises(Conflict):
        await other.update_collection(replace(stored, dim=10))
    await other.delete_collection(stored)  # gone already: as wanted
    assert other.state.deleted_uids == {stored.uid}


async def test_a_change_that_is_made_again_after_a_lost_answer_succeeds(join: Join) -> None:
    one = await join()
    made = record()
    await one.create_collection(made)
    await one.create_collection(made)
    stored = one.state.collections["films"]
    wanted = replace(stored, dim=9)
    await one.update_collection(wanted)
    await one.update_collection(wanted)
    assert one.state.collections["films"].dim == 9
    assert one.state.epoch == one.state.collections["films"].mod_revision, "nothing was written twice"


async def test_of_many_writers_each_change_counts(join: Join) -> None:
    writers = [await join() for _ in range(4)]
    await writers[0].create_collection(replace(record(), dim=0))

    async def add(one: EtcdCoordinator) -> None:
        await sees(one, lambda it: "films" in it.state.collections)
        for _ in range(5):
            while True:
                now = one.state.collections["films"]
                try:
                    await one.update_collection(replace(now, dim=now.dim + 1, embedding_model=uuid.uuid4().hex))
                    break
                except Conflict:
                    await one.changed(now.mod_revision)

    await asyncio.gather(*(add(one) for one in writers))
    await sees(writers[0], lambda it: it.state.collections["films"].dim == 20)


async def test_a_record_over_etcds_limit_is_refused_before_it_is_sent(join: Join) -> None:
    one = await join()
    with pytest.raises(ResourceExhausted, match="fewer shards"):
        await one.create_collection(record(shards=20_000))


async def test_the_widest_collection_fits(join: Join) -> None:
    one = await join()
    wide = record(shards=1024)
    node = "node-" + "x" * 60
    shards = tuple(replace(shard, primary=node, replicas=(node,), in_sync=(node,), term=1) for shard in wide.shards)
    await one.create_collection(replace(wide, shards=shards))
    assert len(one.state.collections["films"].shards) == 1024


async def test_a_load_of_many_keys_is_of_one_revision(join: Join, client: EtcdClient, prefix: str) -> None:
    count = 2 * PAGE_KEYS + 3
    for number in range(count):
        await client.put(f"{prefix}deleted/{number:04}", b"")
    assert len((await join()).state.deleted_uids) == count


async def test_what_cannot_be_read_is_passed_over(join: Join, client: EtcdClient, prefix: str) -> None:
    one = await join()
    await one.create_collection(record("sound"))
    await client.put(f"{prefix}collections/alien", b'{"format_version": 99}')
    await client.put(f"{prefix}nodes/alien", b"\xff\xfe")
    await client.put(f"{prefix}controller", b"\xff")
    await one.create_collection(record("sounder"))
    assert set(one.state.collections) == {"sound", "sounder"}
    fresh = await join()
    assert set(fresh.state.collections) == {"sound", "sounder"}
    assert not fresh.state.nodes


async def test_clusters_of_different_prefixes_do_not_meet(join: Join, etcd: EtcdProcess, prefix: str) -> None:
    one = await join()
    neighbour = EtcdCoordinator([etcd.address], prefix[:-1] + "x/")
    await neighbour.start()
    try:
        await neighbour.create_collection(record("theirs"))
        await one.create_collection(record("ours"))
        assert set(one.state.collections) == {"ours"}
        assert set(neighbour.state.collections) == {"theirs"}
    finally:
        await neighbour.close()


# ---------------------------------------------------------------------- watching


async def test_states_only_grow_and_waiters_wake(join: Join) -> None:
    one, other = await join(), await join()
    epochs: list[int] = []

    async def follow() -> None:
        state = other.state
        while "last" not in state.collections:
            state = await other.changed(state.epoch)
            epochs.append(state.epoch)

    following = asyncio.create_task(follow())
    for name in ("a", "b", "c", "last"):
        await one.create_collection(record(name))
    async with asyncio.timeout(10):
        await following
    assert epochs == sorted(set(epochs))


async def test_a_compacted_revision_ends_the_watch(client: EtcdClient, etcd: EtcdProcess, prefix: str) -> None:
    revisions = [await client.put(f"{prefix}deleted/x", str(number).encode()) for number in range(5)]
    await asyncio.to_thread(etcd.ctl, "compact", str(revisions[-1]))
    async with aclosing(client.watch(prefix, revisions[0])) as batches:
        with pytest.raises(Unavailable, match="compacted"):
            [_ async for _ in batches]


async def test_a_watch_misses_and_repeats_nothing(client: EtcdClient, prefix: str) -> None:
    first = await client.put(f"{prefix}deleted/0", b"")
    seen: list[str] = []

    async def watch() -> None:
        async with aclosing(client.watch(prefix, first)) as batches:
            async for batch in batches:
                seen.extend(entry.key.rpartition("/")[2] for entry in batch)
                if len(seen) >= 200:
                    return

    watching = asyncio.create_task(watch())
    for number in range(1, 200):
        await client.put(f"{prefix}deleted/{number}", b"")
    async with asyncio.timeout(10):
        await watching
    assert seen == [str(number) for number in range(200)]


# ---------------------------------------------------------------------- election


async def test_one_candidate_leads_and_hands_over_when_it_closes(join: Join) -> None:
    routers = [await join() for _ in range(3)]
    for number, one in enumerate(routers):
        await one.campaign(f"r{number}")
    await sees(routers[0], lambda _: any(one.leading for one in routers))
    for _ in range(2):
        leader = next(one for one in routers if one.leading)
        await leader.close()
        assert not leader.leading
        routers.remove(leader)
        await sees(routers[0], lambda _: any(one.leading for one in routers), within_s=2)
        assert sum(one.leading for one in routers) == 1
        await sees(routers[0], lambda one: one.state.controller != "")


LEAD = """
import asyncio, sys
from vectorfleet.cluster.etcd import EtcdCoordinator
async def main():
    one = EtcdCoordinator([sys.argv[1]], sys.argv[2], lease_ttl_s=3)
    await one.start()
    await one.campaign("doomed")
    while not one.leading:
        await asyncio.sleep(0.05)
    print("leads", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_another_leads_soon_after_the_leader_was_killed(join: Join, etcd: EtcdProcess, prefix: str) -> None:
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LEAD, etcd.address, prefix), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        assert doomed.stdout is not None
        async with asyncio.timeout(30):
            assert await doomed.stdout.readline() == b"leads\n"
        heir = await join()
        await heir.campaign("heir")
        assert heir.state.controller == "doomed"
        assert not heir.leading
    finally:
        doomed.kill()
        await doomed.communicate()
    await sees(heir, lambda one: one.leading, within_s=10)
    await sees(heir, lambda one: one.state.controller == "heir")


async def test_a_leader_that_cannot_renew_stops_leading_by_its_own_clock(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await join()
    await one.campaign("r1")
    await sees(one, lambda it: it.leading)
    # The clock of the session alone goes on: no renewal can have come by then.
    leap = itertools.count(10_000)
    monkeypatch.setattr("vectorfleet.cluster.etcd_session.time.monotonic", lambda: float(next(leap)) * 1e6)
    assert not one.leading
