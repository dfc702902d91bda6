"""The controller on a coordinator in memory, with nodes that answer as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from router.controller import Controller, Holdings, holdings, trainer
from vectorfleet.cluster.placement import hash_ranges
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, IndexConfig, NodeInfo, ShardAssignment
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb
from vectorfleet.v1 import types_pb2

SERVING, LOADING, FAILED = (
    cluster_pb.REPLICA_STATUS_SERVING,
    cluster_pb.REPLICA_STATUS_LOADING,
    cluster_pb.REPLICA_STATUS_FAILED,
)


class FakeNode:
    """A shard server's answers; it is its own stub."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replicas: list[pb.ReplicaDescription] = []
        self.trainings: list[pb.TrainCodebookRequest] = []
        self.down = False
        self.failing = 0
        self.training = 0
        self.proceed = asyncio.Event()
        self.proceed.set()
        self.while_training: Callable[[], None] = lambda: None

    def holds(
        self, record: CollectionRecord, shard: int, points: int, status: int = SERVING, seqno: int | None = None
    ) -> None:
        state = cluster_pb.ReplicaState(
            node=self.name,
            status=cluster_pb.ReplicaStatus.ValueType(status),
            points=points,
            applied_seqno=points if seqno is None else seqno,
        )
        self.replicas = [one for one in self.replicas if (one.collection_uid, one.shard) != (record.uid, shard)]
        self.replicas.append(pb.ReplicaDescription(collection_uid=record.uid, shard=shard, state=state))

    async def Describe(self, request: pb.DescribeRequest, timeout: float) -> pb.DescribeResponse:  # noqa: ASYNC109, N802
        assert timeout > 0
        self._answer()
        return pb.DescribeResponse(replicas=self.replicas)

    async def TrainCodebook(self, request: pb.TrainCodebookRequest, timeout: float) -> pb.TrainCodebookResponse:  # noqa: ASYNC109, N802
        assert timeout > 0
        self.trainings.append(request)
        self.training += 1
        try:
            await self.proceed.wait()
            self.while_training()
            if self.failing:
                self.failing -= 1
                self._answer(down=True)
            return pb.TrainCodebookResponse(checksum=f"{request.version:016x}", sampled_points=7)
        finally:
            self.training -= 1

    def _answer(self, down: bool = False) -> None:
        if self.down or down:
            raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), f"{self.name} is down")


class Fleet:
    """Fake nodes by address, and the cluster that they are registered with."""

    def __init__(self) -> None:
        self.cluster = StaticCluster()
        self.coordinator = StaticCoordinator(self.cluster)
        self.nodes: dict[str, FakeNode] = {}
        self.controller = Controller(self.coordinator, self, "r1")

    def stub(self, address: str) -> FakeNode:
        return self.nodes[address]

    def add(self, name: str) -> FakeNode:
        info = NodeInfo(name, f"{name}:1")
        self.nodes[info.address] = FakeNode(name)
        self.cluster.change(nodes={**self.cluster.state.nodes, name: info})
        return self.nodes[info.address]

    def drop(self, name: str) -> None:
        self.cluster.change(nodes={key: node for key, node in self.cluster.state.nodes.items() if key != name})

    async def create(self, name: str, shards: int = 2, index: IndexConfig | None = None) -> CollectionRecord:
        ranges = tuple(ShardAssignment(number, *ends) for number, ends in enumerate(hash_ranges(shards)))
        made = CollectionRecord(name, f"uid-{name}", 8, 1, ranges, index=index or IndexConfig(train_points=1000))
        await self.coordinator.create_collection(made)
        return self.at(name)

    async def create_assigned(self, name: str, shards: int = 2, index: IndexConfig | None = None) -> CollectionRecord:
        await self.create(name, shards, index)
        await self.controller.assign()
        return self.at(name)

    def at(self, name: str) -> CollectionRecord:
        return self.cluster.state.collections[name]


@pytest.fixture
async def fleet() -> Fleet:
    made = Fleet()
    await made.coordinator.campaign("r1")
    return made


@contextlib.asynccontextmanager
async def running(controller: Controller) -> AsyncIterator[None]:
    task = asyncio.create_task(controller.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # the condition looks at fakes: there is no event to wait for
            await asyncio.sleep(0.005)


# ---------------------------------------------------------------------- assignment


async def test_new_collections_are_assigned_while_it_runs(fleet: Fleet) -> None:
    fleet.add("n1")
    fleet.add("n2")
    async with running(fleet.controller):
        await fleet.create("a", shards=3)
        await eventually(lambda: fleet.at("a").assigned)
        await fleet.create("b", shards=1)
        await eventually(lambda: fleet.at("b").assigned)
    assert [shard.primary for shard in fleet.at("a").shards] == ["n1", "n2", "n1"]
    assert fleet.at("b").shards[0].primary == "n2"


async def test_a_collection_waits_for_the_first_node(fleet: Fleet) -> None:
    async with running(fleet.controller):
        await fleet.create("a")
        await asyncio.sleep(0)
        assert not fleet.at("a").assigned
        fleet.add("n1")
        await eventually(lambda: fleet.at("a").assigned)


async def test_only_the_leader_acts_and_a_successor_takes_over(fleet: Fleet) -> None:
    fleet.add("n1")
    other = StaticCoordinator(fleet.cluster)
    second = Controller(other, fleet, "r2")
    async with running(second):
        await fleet.create("a")
        await eventually(lambda: other.candidate)
        assert not fleet.at("a").assigned
        await fleet.coordinator.close()
        await eventually(lambda: fleet.at("a").assigned)
        assert other.leading


async def test_a_lost_race_is_run_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("n1")
    real = fleet.coordinator.update_collection
    lost: list[str] = []

    async def beaten_once(record: CollectionRecord) -> None:
        if not lost:
            lost.append(record.name)
            await real(replace(fleet.at(record.name), embedding_model="changed meanwhile"))
        await real(record)

    monkeypatch.setattr(fleet.coordinator, "update_collection", beaten_once)
    async with running(fleet.controller):
        await fleet.create("a")
        await eventually(lambda: fleet.at("a").assigned)
    assert fleet.at("a").embedding_model == "changed meanwhile"


async def test_a_coordinator_that_is_away_is_waited_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.controller.LEADING_CHECK_S", 0.01)
    fleet.add("n1")
    await fleet.create("a")
    fleet.cluster.away = True
    async with running(fleet.controller):
        await asyncio.sleep(0.05)
        assert not fleet.at("a").assigned
        fleet.cluster.away = False
        await eventually(lambda: fleet.at("a").assigned)


# ---------------------------------------------------------------------- training


async def test_a_collection_that_is_large_enough_gets_its_codebook(fleet: Fleet) -> None:
    nodes = {"n1": fleet.add("n1"), "n2": fleet.add("n2")}
    made = await fleet.create_assigned("a")
    nodes["n1"].holds(made, 0, 400)
    nodes["n2"].holds(made, 1, 599)
    assert await fleet.controller.train_where_due() == {"uid-a": 999}
    assert fleet.at("a").codebook is None
    nodes["n2"].holds(made, 1, 600)
    await fleet.controller.train_where_due()
    (request,) = nodes["n2"].trainings  # it has most of the points
    assert not nodes["n1"].trainings
    assert (request.collection_uid, request.version, request.kind) == ("uid-a", 1, 1)
    assert (request.nlist, request.m) == (16, 4)
    assert [(one.shard, one.address, one.limit) for one in request.sources] == [(0, "n1:1", 400), (1, "n2:1", 600)]
    codebook = fleet.at("a").codebook
    assert codebook is not None
    assert (codebook.version, codebook.checksum, codebook.trained_points, codebook.node) == (1, f"{1:016x}", 1000, "n2")
    assert (codebook.nlist, codebook.m) == (16, 4)


async def test_the_next_codebook_follows_eightfold_growth(fleet: Fleet) -> None:
    node = fleet.add("n1")
    made = await fleet.create_assigned("a", shards=1)
    for points, version in ((1000, 1), (7_999, 1), (8_000, 2), (63_999, 2), (64_000, 3)):
        node.holds(made, 0, points)
        await fleet.controller.train_where_due()
        codebook = fleet.at("a").codebook
        assert codebook is not None
        assert codebook.version == version


async def test_the_next_codebook_follows_when_half_of_the_points_are_others(fleet: Fleet) -> None:
    one, other = fleet.add("n1"), fleet.add("n2")
    made = await fleet.create_assigned("a")
    for seqno, version in ((6_000, 1), (6_499, 1), (6_500, 2), (6_999, 2), (7_000, 3)):
        one.holds(made, 0, 500, seqno=seqno - 5_000)
        other.holds(made, 1, 500, seqno=5_000)
        await fleet.controller.train_where_due()
        codebook = fleet.at("a").codebook
        assert codebook is not None
        assert (codebook.version, codebook.trained_seqno) == (version, 5_500 + 500 * version)


async def test_a_flat_collection_is_never_trained_nor_asked_about(fleet: Fleet) -> None:
    node = fleet.add("n1")
    made = await fleet.create_assigned("a", shards=1, index=IndexConfig(types_pb2.INDEX_KIND_FLAT))
    node.holds(made, 0, 10**7)
    assert await fleet.controller.train_where_due() == {}
    assert not node.trainings


async def test_a_shard_that_loads_is_waited_for(fleet: Fleet) -> None:
    one, other = fleet.add("n1"), fleet.add("n2")
    made = await fleet.create_assigned("a")
    one.holds(made, 0, 5000)
    await fleet.controller.train_where_due()
    other.holds(made, 1, 0, LOADING)
    await fleet.controller.train_where_due()
    other.down = True
    await fleet.controller.train_where_due()
    assert not one.trainings
    other.down = False
    other.holds(made, 1, 4000)
    await fleet.controller.train_where_due()
    assert one.trainings


@pytest.mark.parametrize("how", ["failed", "gone"])
async def test_a_shard_that_will_not_come_is_not_waited_for(fleet: Fleet, how: str) -> None:
    one, other = fleet.add("n1"), fleet.add("n2")
    made = await fleet.create_assigned("a")
    one.holds(made, 0, 5000)
    if how == "failed":
        other.holds(made, 1, 0, FAILED)
    else:
        fleet.drop("n2")
    await fleet.controller.train_where_due()
    (request,) = one.trainings
    assert [source.shard for source in request.sources] == [0]


async def test_a_failure_costs_a_pause_and_then_another_node_tries(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = fleet.add("n1"), fleet.add("n2")
    made = await fleet.create_assigned("a")
    one.holds(made, 0, 5000)
    other.holds(made, 1, 4000)
    one.failing = 99
    await fleet.controller.train_where_due()
    assert "n1 is down" in caplog.text
    await fleet.controller.train_where_due()  # within the pause
    assert (len(one.trainings), len(other.trainings)) == (1, 0)
    monkeypatch.setattr("router.controller.RETRY_FIRST_S", 0.0)
    fleet.controller = Controller(fleet.coordinator, fleet, "r1")
    await fleet.controller.train_where_due()
    await fleet.controller.train_where_due()
    assert (len(one.trainings), len(other.trainings)) == (2, 1)
    assert fleet.at("a").codebook is not None


async def test_collections_are_trained_one_after_the_other(fleet: Fleet) -> None:
    node = fleet.add("n1")
    most: list[int] = []
    node.while_training = lambda: most.append(node.training)
    for name in ("a", "b", "c"):
        node.holds(await fleet.create_assigned(name, shards=1), 0, 2000)
    await fleet.controller.train_where_due()
    assert most == [1, 1, 1]
    assert all(fleet.at(name).codebook is not None for name in ("a", "b", "c"))


async def test_a_codebook_does_not_undo_what_changed_while_it_was_trained(fleet: Fleet) -> None:
    node = fleet.add("n1")
    made = await fleet.create_assigned("a", shards=1)
    node.holds(made, 0, 2000)

    def change() -> None:
        stored = replace(fleet.at("a"), embedding_model="later", mod_revision=fleet.cluster.state.epoch + 1)
        fleet.cluster.change(collections={"a": stored})

    node.while_training = change
    await fleet.controller.train_where_due()
    assert fleet.at("a").embedding_model == "later"
    assert fleet.at("a").codebook is not None


async def test_a_collection_deleted_during_its_training_stays_deleted(fleet: Fleet) -> None:
    node = fleet.add("n1")
    made = await fleet.create_assigned("a", shards=1)
    node.holds(made, 0, 2000)
    node.while_training = lambda: fleet.cluster.change(collections={})
    await fleet.controller.train_where_due()
    assert node.trainings
    assert not fleet.cluster.state.collections


async def test_whoever_stops_leading_leaves_the_training(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.controller.LEADING_CHECK_S", 0.01)
    node = fleet.add("n1")
    made = await fleet.create_assigned("a", shards=1)
    node.holds(made, 0, 2000)
    node.proceed.clear()
    looking = asyncio.create_task(fleet.controller.train_where_due())
    await eventually(lambda: node.training)
    await fleet.coordinator.close()
    async with asyncio.timeout(5):
        await looking
    assert node.training == 0
    assert fleet.at("a").codebook is None


async def test_training_goes_on_by_itself_while_it_runs(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.controller.POLL_FIRST_S", 0.01)
    node = fleet.add("n1")
    async with running(fleet.controller):
        await fleet.create("a", shards=1)
        await eventually(lambda: fleet.at("a").assigned)
        node.holds(fleet.at("a"), 0, 2000)
        await eventually(lambda: fleet.at("a").codebook is not None)
    assert node.training == 0


# ---------------------------------------------------------------------- what the nodes say


def test_replicas_elsewhere_do_not_count() -> None:
    shards = tuple(
        ShardAssignment(number, *ends, primary="n1", replicas=("n1",), term=1)
        for number, ends in enumerate(hash_ranges(1))
    )
    record = CollectionRecord("a", "uid-a", 8, 1, shards)
    state = ClusterState(1, {"n1": NodeInfo("n1", "n1:1"), "n2": NodeInfo("n2", "n2:1")})
    stale = FakeNode("n2")
    stale.holds(record, 0, 500)
    found = holdings(record, state, {"n2": pb.DescribeResponse(replicas=stale.replicas)})
    assert found == Holdings({}, 0, True, False)
    assert trainer(record, found, state, 0) is None
