"""The loop behind background work: in turns, promptly after writes, patient with what fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shard_server.budget import ByteBudget
from shard_server.hosted import HostedReplica
from shard_server.maintenance import Maintenance
from shard_server.threads import WorkPool
from tests.unit.shard_server.fake_replica import FakeReplica, collection, until


@contextlib.asynccontextmanager
async def maintained(*fakes: FakeReplica) -> AsyncIterator[tuple[Maintenance, list[HostedReplica]]]:
    pool = WorkPool("background", threads=1, waiting_max=10)
    sealing = WorkPool("sealing", threads=1, waiting_max=10)
    hosted: list[HostedReplica] = []
    maintenance = Maintenance(lambda: hosted, sealing, pool)
    for number, fake in enumerate(fakes):
        record = collection(f"u{number}", ["n1"])
        held = HostedReplica(record, record.shards[0], pool, ByteBudget("writes", 100), maintenance.notify)
        replica: Any = fake
        held.serve(replica)
        hosted.append(held)
    task = asyncio.create_task(maintenance.run())
    try:
        yield maintenance, hosted
    finally:
        assert not task.done(), "it runs for ever"
        task.cancel()
        await asyncio.wait([task])
        pool.close()
        sealing.close()


async def test_replicas_take_turns() -> None:
    fakes = [FakeReplica(units=50), FakeReplica(units=50)]
    async with maintained(*fakes):
        await until(lambda: fakes[0].units == 0, "the first one done")
        assert fakes[1].units <= 1
        await until(lambda: fakes[1].units == 0, "both done")


async def test_buffers_are_sealed_while_a_merge_of_their_replica_or_another_goes_on() -> None:
    large, small = FakeReplica(units=1), FakeReplica()
    large.improving.clear()
    async with maintained(large, small) as (maintenance, hosted):
        try:
            await until(lambda: large.maintained, "the merge begun")
            for fake, held in zip((large, small), hosted, strict=True):
                fake.buffers = 3
                maintenance.notify(held)
            await until(lambda: large.buffers == small.buffers == 0, "both sealed")
            assert large.units == 1
        finally:
            large.improving.set()
        await until(lambda: large.units == 0, "merged")


async def test_a_write_wakes_it_before_the_tick() -> None:
    fake = FakeReplica()
    async with maintained(fake) as (maintenance, hosted):
        await until(lambda: fake.maintained, "the first round")
        fake.units = 3
        for _ in range(100):
            maintenance.notify(hosted[0])
        await until(lambda: fake.units == 0, "done")


async def test_it_comes_round_without_being_woken() -> None:
    fake = FakeReplica()
    async with maintained(fake):
        await until(lambda: len(fake.maintained) >= 3, "three rounds")
    gaps = [later - earlier for earlier, later in zip(fake.maintained, fake.maintained[1:], strict=False)]
    assert min(gaps) > 0.3, "idle rounds are a second apart"


async def test_a_failure_is_logged_and_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = FakeReplica(error=OSError("no space left")), FakeReplica(units=20)
    async with maintained(bad, good) as (maintenance, hosted):
        await until(lambda: good.units == 0, "the good one done")
        assert len(bad.maintained) == 1, "it is left alone for a while"
        assert "shard 0 of collection u0" in caplog.text
        assert "no space left" in caplog.text
        bad.error = None
        bad.units = 1
        maintenance.notify(hosted[0])
        await until(lambda: bad.units == 0, "tried again")
