"""A router before nodes that hang, or only take long: what its callers get, and when."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from router import deadline
from router.describing import NODE_TIMEOUT_S
from router.nodes import Node
from tests.unit.router.api import SHARDS, Api, loaded, until
from tests.unit.router.fake_node import fleet
from vectorfleet import errors
from vectorfleet.v1 import (
    point_service_pb2,
)


@pytest.fixture
def half_for_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a short deadline, half is kept for the answer's way: on a busy machine, the margin of users is not enough for tests."""
    monkeypatch.setattr(deadline, "MARGIN_MIN_S", deadline.MARGIN_MAX_S)


@pytest.mark.usefixtures("half_for_the_way_back")
async def test_a_node_that_hangs_costs_its_part_and_later_nothing(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.nodes["n2"].gate.clear()
        hasty = await api.search(vectors[:1], timeout_s=2.0)
        assert hasty.coverage.shards_answered == SHARDS // 2
        assert {missing.reason for missing in hasty.coverage.missing} == {"DEADLINE_EXCEEDED"}
        patient = await api.search(vectors[:1], timeout_s=600.0)
        assert {missing.reason for missing in patient.coverage.missing} == {"SHARD_UNAVAILABLE"}, "probes find it out"
        asked = len(under.nodes["n2"].searches)
        found = await api.search(vectors[:1], timeout_s=600.0)
        assert {missing.reason for missing in found.coverage.missing} == {"SHARD_UNAVAILABLE"}
        assert len(under.nodes["n2"].searches) == asked, "the circuit is open: nobody asks the node"
        under.nodes["n2"].gate.set()

        async def whole() -> bool:
            return not (await api.search(vectors[:1])).coverage.missing

        await until(whole)


async def test_a_node_that_works_long_is_waited_for(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        node = under.nodes["n2"]
        node.busy.clear()
        # Longer than it takes to open the circuit of a node that hangs.
        asyncio.get_running_loop().call_later(6.0, node.busy.set)
        found = await api.search(vectors[:1], timeout_s=60.0)
        assert found.coverage.shards_answered == SHARDS


async def test_a_count_waits_as_long_as_its_caller(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        await loaded(api, rng)
        under.nodes["n2"].gate.clear()
        asyncio.get_running_loop().call_later(NODE_TIMEOUT_S + 0.2, under.nodes["n2"].gate.set)
        request = point_service_pb2.CountRequest(collection="c")
        assert (await api.points.Count(request, timeout=60.0)).points == 60


@pytest.mark.usefixtures("half_for_the_way_back")
async def test_callers_behind_a_hanging_node_do_not_wait_for_one_another(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.nodes["n2"].busy.clear()  # it answers probes, so that nothing but their deadlines ends these searches
        patient = [asyncio.create_task(api.search(vectors[:1], timeout_s=60.0)) for _ in range(20)]
        hasty = await asyncio.gather(*(api.search(vectors[i : i + 1], timeout_s=3.0) for i in range(20)))
        assert not any(task.done() for task in patient)
        assert all(answer.coverage.shards_answered == SHARDS // 2 for answer in hasty)
        under.nodes["n2"].busy.set()
        assert all(answer.coverage.shards_answered == SHARDS for answer in await asyncio.gather(*patient))


async def test_a_call_that_ends_with_its_channel_fails_and_cancels_nobody() -> None:
    node = Node("a", channel=None, stub=None)  # type: ignore[arg-type]
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(node.call(never))
    await asyncio.sleep(0)
    node.give_up()
    with pytest.raises(errors.Unavailable, match="channel was closed"):
        await asking
    leaving = asyncio.create_task(node.call(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
