"""The coordinator in memory keeps the rules of the real one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from vectorfleet.cluster.coordinator import Conflict, Coordinator
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.errors import Unavailable

RECORD = CollectionRecord("films", "u1", 8, 1, (ShardAssignment(0, 0, 2**64 - 1),))


async def test_it_keeps_compare_and_swap() -> None:
    one: Coordinator = StaticCoordinator()
    await one.create_collection(RECORD)
    with pytest.raises(Conflict):
        await one.create_collection(replace(RECORD, uid="u2"))
    stored = one.state.collections["films"]
    await one.update_collection(replace(stored, dim=9))
    for change in (one.update_collection, one.delete_collection):
        with pytest.raises(Conflict):
            await change(stored)
    await one.delete_collection(one.state.collections["films"])
    await one.delete_collection(stored)
    assert one.state.deleted_uids == {"u1"}
    assert not one.state.collections


async def test_processes_share_a_cluster_and_leave_it_with_close() -> None:
    cluster = StaticCluster()
    first, second = StaticCoordinator(cluster), StaticCoordinator(cluster)
    await first.register(NodeInfo("n1", "a:1"))
    await first.campaign("r1")
    await second.campaign("r2")
    assert (first.leading, second.leading, second.state.controller) == (True, False, "r1")
    waiting = asyncio.create_task(second.changed(second.state.epoch))
    await asyncio.sleep(0)
    await first.close()
    assert not (await waiting).nodes
    assert (second.leading, second.state.controller) == (True, "r2")


async def test_changes_fail_while_it_plays_away() -> None:
    one = StaticCoordinator()
    one.cluster.away = True
    with pytest.raises(Unavailable) as caught:
        await one.create_collection(RECORD)
    assert caught.value.reason == "COORDINATOR_UNAVAILABLE"
    assert not one.connected
