"""What a node shows of its replicas at a scrape: bounded, of this moment, and without those that are gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shard_server.budget import ByteBudget
from shard_server.codebook_store import CodebookStore
from shard_server.engine.answers import ReplicaStats
from shard_server.gauges import TROUBLED_MAX, ShardGauges
from shard_server.hosted import HostedReplica
from shard_server.threads import WorkPool
from tests.unit.shard_server.fake_replica import FakeReplica, collection
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.errors import DataLoss
from vectorfleet.metrics import NAMES_MAX, OTHERS, Metrics

STATS = ReplicaStats(0, 0, 3, 1, 2, 1, 50, 7, 100, 60, 40, {"codes": 60, "buffers": 40})


class Sized(FakeReplica):
    """A replica of so many points."""

    settled = True
    trouble = ""
    points = 0

    def stats(self) -> ReplicaStats:
        return replace(STATS, points=self.points)


class Scraped:
    """A node's gauges over replicas that a test changes."""

    def __init__(self, folder: Path) -> None:
        self.pool = WorkPool("control", threads=1, waiting_max=1000)
        self.held: list[HostedReplica] = []
        self.metrics = Metrics("shard")
        budgets = {"writes": ByteBudget("writes", 100)}
        self.store = CodebookStore(folder / "codebooks")
        self.cluster = StaticCluster()
        self.gauges = ShardGauges(
            *(self.metrics, StaticCoordinator(self.cluster), lambda: self.held, [self.pool], budgets, self.store),
            *(folder, 1 << 30),
        )

    def add(self, name: str, points: int, trouble: str = "") -> HostedReplica:
        record = replace(collection(f"uid-{name}", ["n1"]), name=name)
        held = HostedReplica(record, record.shards[0], self.pool, ByteBudget("writes", 100), lambda _: None)
        fake: Any = Sized()
        fake.points, fake.trouble = points, trouble
        held.serve(fake)
        self.held.append(held)
        return held

    async def scrape(self, word: str = "") -> set[str]:
        self.gauges._measure_again_s = 0.0  # as if time had passed
        await self.gauges.refresh()
        lines = self.metrics.text()[0].decode().splitlines()
        return {line.removeprefix("vectorfleet_shard_") for line in lines if word in line and not line.startswith("#")}


@pytest.fixture
def scraped(tmp_path: Path) -> Any:
    one = Scraped(tmp_path)
    yield one
    one.pool.close()


async def test_sizes_are_added_up_by_collection_and_what_is_gone_vanishes(scraped: Scraped) -> None:
    scraped.store.save("uid-films", 1, b"codebook")
    scraped.add("films", 10)
    scraped.add("films", 32)
    lines = await scraped.scrape()
    for line in (
        'points{collection="films"} 42.0',
        'segments{collection="films"} 4.0',
        'unsealed_writes{collection="films"} 14.0',
        'codebook_version{collection="films"} 1.0',
        'memory_bytes{kind="codes"} 120.0',
        'replicas{status="serving"} 2.0',
        "disk_reserve_bytes 1.073741824e+09",
        "etcd_silence_seconds 0.0",
    ):
        assert line in lines
    assert any(line.startswith('codebook_age_seconds{collection="films"}') for line in lines)
    scraped.held.clear()
    assert await scraped.scrape("films") == set()
    assert await scraped.scrape("shard_memory_bytes") == set()


async def test_ten_times_as_many_collections_as_are_shown(scraped: Scraped) -> None:
    for number in range(10 * NAMES_MAX):
        scraped.add(f"c{number}", number)
    lines = await scraped.scrape("shard_points{")
    assert len(lines) == NAMES_MAX + 1
    assert f'points{{collection="c{10 * NAMES_MAX - 1}"}} {10 * NAMES_MAX - 1}.0' in lines, "the largest are shown"
    rest = sum(range(9 * NAMES_MAX))
    assert any(
        line.startswith(f'points{{collection="{OTHERS}"}}') and float(line.split()[-1]) == rest for line in lines
    )


async def test_shards_in_trouble_are_named_so_many_at_most(scraped: Scraped) -> None:
    scraped.add("films", 1)
    scraped.add("full", 1, trouble="the disk is full")
    scraped.add("broken", 1).fail(DataLoss("a file is gone"))
    assert await scraped.scrape("troubled") == {
        'replica_troubled{collection="broken",shard="0"} 1.0',
        'replica_troubled{collection="full",shard="0"} 1.0',
    }
    assert "replicas_refusing_writes 1.0" in await scraped.scrape()
    assert 'replicas{status="failed"} 1.0' in await scraped.scrape()
    for number in range(3 * TROUBLED_MAX):
        scraped.add(f"bad{number}", 1, trouble="the disk is full")
    assert len(await scraped.scrape("troubled")) == TROUBLED_MAX
