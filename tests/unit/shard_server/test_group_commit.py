"""Group commit: what goes together, in which order, within which bounds, and who hears of a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shard_server.budget import ByteBudget
from shard_server.engine.state import Applied
from shard_server.group_commit import GroupCommit, PendingWrite, WriteQueue
from tests.unit.shard_server.fake_replica import TIMEOUT_S, deletion, until
from vectorfleet.errors import DataLoss, ResourceExhausted, Unavailable
from vectorfleet.internal.v1 import storage_pb2


class Disk:
    """Commits when the test opens the gate."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[str], int]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.seqno = 0

    async def commit(self, mutations: Sequence[storage_pb2.Mutation], term: int) -> list[Applied]:
        self.commits.append(([point_id for one in mutations for point_id in one.delete.ids], term))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        outcomes = []
        for _ in mutations:
            self.seqno += 1
            outcomes.append(Applied(self.seqno, 1))
        return outcomes


def pending(term: int, size_bytes: int) -> PendingWrite:
    return PendingWrite(deletion("x"), term, size_bytes, asyncio.get_running_loop().create_future())


async def test_the_queue_takes_runs_of_one_term_within_the_commits_bytes() -> None:
    queue = WriteQueue(bytes_max=1000, writes_max=10, commit_bytes_max=100)
    writes = [pending(1, 60), pending(1, 40), pending(1, 1), pending(2, 5), pending(1, 500)]
    for write in writes:
        queue.add(write)
    assert queue.take() == writes[:2]
    assert queue.take() == writes[2:3]
    assert queue.take() == writes[3:4]
    assert queue.take() == writes[4:], "one write goes, however large"
    assert queue.take() == []


async def test_the_queue_is_bounded_by_bytes_and_by_number() -> None:
    queue = WriteQueue(bytes_max=100, writes_max=3, commit_bytes_max=1000)
    queue.add(pending(1, 500))  # one write always fits
    with pytest.raises(ResourceExhausted, match="wait already"):
        queue.add(pending(1, 1))
    queue.take()
    for _ in range(3):
        queue.add(pending(1, 1))
    with pytest.raises(ResourceExhausted):
        queue.add(pending(1, 1))
    queue.take()
    queue.add(pending(1, 100))


async def test_writes_that_wait_share_the_next_commit_in_their_order() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit, ByteBudget("writes", 10_000))
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        first = group.create_task(commits.write(deletion("0"), 7))
        await until(lambda: disk.commits, "the first commit, at once")
        others = [group.create_task(commits.write(deletion(str(number)), 7)) for number in range(1, 50)]
        await asyncio.sleep(0)
        disk.gate.set()
    assert disk.commits == [(["0"], 7), ([str(number) for number in range(1, 50)], 7)]
    assert first.result().seqno == 1
    assert [task.result().seqno for task in others] == list(range(2, 51))


async def test_a_failed_commit_fails_for_all_in_it_and_for_no_other() -> None:
    disk = Disk()
    budget = ByteBudget("writes", 10_000)
    commits = GroupCommit(disk.commit, budget)
    disk.error = DataLoss("segment 3")
    disk.gate.set()
    outcomes = await asyncio.gather(*(commits.write(deletion(str(n)), 1) for n in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, DataLoss) for outcome in outcomes)
    disk.error = None
    assert (await commits.write(deletion("after"), 1)).seqno == 1
    assert budget.taken_bytes == 0


async def test_one_that_is_refused_for_want_of_room_costs_the_others_nothing() -> None:
    full = ResourceExhausted("full", reason="DISK_FULL")
    committed: list[str] = []
    gate = asyncio.Event()

    async def commit(mutations: Sequence[storage_pb2.Mutation], term: int) -> list[Applied]:
        await gate.wait()
        if any(mutation.WhichOneof("kind") == "upsert" for mutation in mutations):
            raise full
        committed.extend(point_id for mutation in mutations for point_id in mutation.delete.ids)
        return [Applied(len(committed), 1) for _ in mutations]

    budget = ByteBudget("writes", 10_000)
    commits = GroupCommit(commit, budget)
    upsert = storage_pb2.Mutation(upsert=storage_pb2.UpsertBatch(ids=["new"], vectors=b"1234"))
    writes = [deletion("a"), deletion("b"), upsert, deletion("c")]
    tasks = [asyncio.create_task(commits.write(write, 1)) for write in writes]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome is full for outcome in outcomes] == [False, False, True, False]
    assert committed == ["a", "b", "c"]
    assert budget.taken_bytes == 0


async def test_the_write_of_a_caller_who_left_still_happens() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit, ByteBudget("writes", 10_000))
    first = asyncio.create_task(commits.write(deletion("first"), 1))
    await until(lambda: disk.commits, "the first commit")
    left = asyncio.create_task(commits.write(deletion("left"), 1))
    await asyncio.sleep(0)
    left.cancel()
    disk.gate.set()
    await first
    await commits.close()
    assert disk.commits[1:] == [(["left"], 1)]


async def test_the_nodes_budget_bounds_all_replicas_together() -> None:
    disk = Disk()
    size = deletion("0").ByteSize()
    budget = ByteBudget("writes", 2 * size)
    one, other = GroupCommit(disk.commit, budget), GroupCommit(disk.commit, budget)
    waiting = [asyncio.create_task(queue.write(deletion("0"), 1)) for queue in (one, other)]
    await until(lambda: len(disk.commits) == 2, "both commits")
    with pytest.raises(ResourceExhausted) as caught:
        await one.write(deletion("0"), 1)
    assert caught.value.reason == "OVERLOADED"
    disk.gate.set()
    await asyncio.gather(*waiting)
    await one.write(deletion("0"), 1)


async def test_closing_commits_what_was_admitted_and_refuses_the_rest() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit, ByteBudget("writes", 10_000))
    admitted = [asyncio.create_task(commits.write(deletion(str(number)), 1)) for number in range(3)]
    await until(lambda: disk.commits, "the first commit")
    closing = asyncio.create_task(commits.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await commits.write(deletion("late"), 1)
    assert caught.value.reason == "SHUTTING_DOWN"
    disk.gate.set()
    await closing
    assert [task.result().seqno for task in admitted] == [1, 2, 3]
