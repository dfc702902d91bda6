"""The ceiling on bytes under way: who is refused, who waits, and that no search takes it all."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from router import budget, search_service
from router.budget import Budgets, ByteBudget
from router.validation import SearchOptions
from tests.unit.router.api import DIM, Api
from tests.unit.router.fake_node import fleet
from vectorfleet import errors, limits
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.v1 import point_service_pb2 as pb


async def test_overload_is_refused_and_streams_wait_for_room() -> None:
    things = ByteBudget("things", 100)
    with things.holding(1000):  # alone: it must be possible to work on it at all
        with pytest.raises(errors.ResourceExhausted) as refused, things.holding(1):
            pass
        assert refused.value.reason == "OVERLOADED"
        assert refused.value.message == "things: 1 bytes are asked for, 1000 of 100 are under way"
        waiting = asyncio.create_task(things.room_for(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    with things.holding(40):
        await things.room_for(60)


@pytest.mark.parametrize("limit_bytes", [1 << 28, 1 << 30, 24 << 30, 1 << 40])
def test_budgets_leave_room_for_the_process(limit_bytes: int) -> None:
    budgets = Budgets.under(limit_bytes)
    assert budgets.used_bytes == 0
    assert budgets.limit_bytes <= limit_bytes * 7 // 8
    assert budgets.searches.limit_bytes == min(budget.SEARCH_BYTES_MAX, limit_bytes // 2)


async def test_streams_share_a_budget_that_holds_one_batch(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    streams, batches, rows = 4, 6, 20
    vectors = rng.standard_normal((rows, DIM)).astype("<f4")
    monkeypatch.setattr(budget, "WRITE_BYTES_MAX", int(1.5 * vectors.nbytes))
    async with fleet("n1", "n2") as under:
        api = Api(under)
        await api.create()

        async def load(stream: int) -> int:
            call = api.points.BulkUpsert(timeout=60.0)
            for batch in range(batches):
                ids = [f"{stream}-{batch}-{row}" for row in range(rows)]
                packed = pb.PackedPoints(ids=ids, vectors=vectors.tobytes())
                await call.write(pb.BulkUpsertRequest(collection="c", packed=packed))
            await call.done_writing()
            return (await call).upserted

        assert await asyncio.gather(*map(load, range(streams))) == [batches * rows] * streams
        counted = await api.points.Count(pb.CountRequest(collection="c"), timeout=60.0)
        assert counted.points == streams * batches * rows


@pytest.mark.parametrize("nodes", [1, 1000])
def test_no_search_takes_the_whole_budget(nodes: int) -> None:
    shards = tuple(ShardAssignment(n, n, n, 1, f"n{n}", (f"n{n}",), (f"n{n}",)) for n in range(nodes))
    record = CollectionRecord("c", "u", limits.DIM_MAX, 1, shards)
    options = SearchOptions(k=limits.K_MAX, with_payload=True, with_vector=True)
    most = search_service._bytes_at_most(record, limits.QUERIES_MAX, options)
    assert most < budget.SEARCH_BYTES_MAX / 2
