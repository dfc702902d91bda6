"""The controller: the router that leads gives shards of new collections to nodes, and has codebooks trained.

Every router runs one; only the one that holds the election acts. All its facts are in etcd and in the nodes' answers, so a
successor goes on where it stopped; what it remembers itself are pauses after failures. Each change is a compare-and-swap: two
controllers that both believe they lead, for the moment that this can last, cannot overwrite each other.

It takes part in no read and no write: a cluster without a controller serves on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from zlib import crc32

import grpc

from router import assignment
from vectorfleet.cluster.codebook_shape import codebook_shape
from vectorfleet.cluster.coordinator import Conflict, Coordinator
from vectorfleet.cluster.shard_map import ClusterState, CodebookRecord, CollectionRecord, NodeInfo
from vectorfleet.errors import VectorfleetError, from_rpc_error
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.v1 import cluster_service_pb2, types_pb2

POLL_FIRST_S: Final = 0.5
POLL_MAX_S: Final = 2.0
DESCRIBE_TIMEOUT_S: Final = 2.0
TRAIN_TIMEOUT_S: Final = 3600.0
LEADING_CHECK_S: Final = 1.0
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
STORE_ATTEMPTS: Final = 10

_log = logging.getLogger(__name__)


class Nodes(Protocol):
    """The ways to the nodes."""

    def stub(self, address: str) -> Any:
        """The asyncio stub of the ShardService at host:port."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the nodes say about one collection."""

    points: Mapping[int, int]
    """Live points of each shard that serves, by shard number."""
    seqnos: int
    """That they have given away."""
    quiet: bool
    """Whether they have nothing left to seal, to merge or to encode."""
    complete: bool
    """False: a shard on a live node is still loading, or its node did not answer. Shards of nodes that are gone, and failed
    ones, are not waited for: points are spread by hash, so the rest is a fair sample."""

    @property
    def total(self) -> int:
        """Live points of all shards that serve."""
        return sum(self.points.values())


@dataclass(slots=True)
class _Pause:
    until: float
    failures: int


class Controller:
    """Assigns and trains for as long as `run` runs, whenever this router leads."""

    def __init__(self, coordinator: Coordinator, nodes: Nodes, router_id: str) -> None:
        """Idle until `run`.

        Args:
            coordinator: started.
            nodes: the ways to the nodes.
            router_id: of this router; unique, for the election.
        """
        self._coordinator = coordinator
        self._nodes = nodes
        self._router_id = router_id
        self._pauses: dict[str, _Pause] = {}

    async def run(self) -> None:
        """Stands for election and does the leader's work until it is cancelled."""
        await self._coordinator.campaign(self._router_id)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._assign_for_ever(), name="assign shards")
            tasks.create_task(self._train_for_ever(), name="train codebooks")

    # ------------------------------------------------------------------ assignment

    async def _assign_for_ever(self) -> None:
        delay_s = LEADING_CHECK_S
        while True:
            state = self._coordinator.state
            try:
                if self._coordinator.leading:
                    await self.assign()
                delay_s = LEADING_CHECK_S
            except VectorfleetError as error:
                _log.warning("shards are not assigned: %s", error)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            except Exception:
                _log.exception("shards are not assigned")
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            try:
                # The election itself changes no state that we wait for, hence a look now and then.
                async with asyncio.timeout(delay_s):
                    await self._coordinator.changed(state.epoch)
            except TimeoutError:
                pass

    async def assign(self) -> None:
        """Assigns the shards that have no primary, of all collections. Raises `Unavailable` where etcd is away."""
        for name in sorted(self._coordinator.state.collections):
            state = self._coordinator.state  # anew each time: what was just assigned counts as load
            record = state.collections.get(name)
            if record is None or record.assigned:
                continue
            assigned = assignment.assign_shards(record, state.nodes, state.collections.values())
            if assigned is record:
                _log.warning("collection %s waits for a node to take its shards", name)
                continue
            try:
                await self._coordinator.update_collection(assigned)
            except Conflict:
                continue  # whoever changed it wakes us again
            nodes = {shard.primary for shard in assigned.shards}
            _log.info("assigned the %d shards of collection %s to %d nodes", len(assigned.shards), name, len(nodes))

    # ------------------------------------------------------------------ training

    async def _train_for_ever(self) -> None:
        delay_s = POLL_FIRST_S
        last: dict[str, int] = {}
        while True:
            await asyncio.sleep(delay_s)
            if not self._coordinator.leading:
                self._pauses.clear()
                continue
            try:
                seen = await self.train_where_due()
            except Exception:
                _log.exception("looking after codebooks failed")
                delay_s = POLL_MAX_S
                continue
            delay_s = POLL_FIRST_S if seen != last else min(1.5 * delay_s, POLL_MAX_S)
            last = seen

    async def train_where_due(self) -> dict[str, int]:
        """Looks at all collections once and trains those that want it, one after the other.

        Returns:
            The points of each collection that may ever need training, by uid.
        """
        state = self._coordinator.state
        candidates = [
            one
            for one in state.collections.values()
            if one.index.kind != types_pb2.INDEX_KIND_FLAT and one.restoring is None
        ]
        if not candidates:
            return {}
        descriptions = await self._describe(state)
        self._pauses = {uid: pause for uid, pause in self._pauses.items() if state.by_uid(uid) is not None}
        seen = {}
        for record in sorted(candidates, key=lambda one: one.name):
            held = holdings(record, state, descriptions)
            seen[record.uid] = held.total
            pause = self._pauses.get(record.uid)
            waits = pause is not None and time.monotonic() < pause.until
            due = assignment.training_due(record, held.total, held.seqnos, quiet=held.quiet)
            if held.complete and not waits and due:
                await self._train_while_leading(record, held)
        return seen

    async def _describe(self, state: ClusterState) -> dict[str, shard_service_pb2.DescribeResponse]:
        """Asks all live nodes; those that do not answer are missing in the result."""

        async def ask(node: NodeInfo) -> tuple[str, shard_service_pb2.DescribeResponse | None]:
            request = shard_service_pb2.DescribeRequest()
            try:
                return node.id, await self._nodes.stub(node.address).Describe(request, timeout=DESCRIBE_TIMEOUT_S)
            except grpc.RpcError as error:
                _log.debug("node %s does not describe itself: %s", node.id, from_rpc_error(error))
                return node.id, None

        answers = await asyncio.gather(*(ask(node) for node in state.nodes.values()))
        return {node_id: answer for node_id, answer in answers if answer is not None}

    async def _train_while_leading(self, record: CollectionRecord, held: Holdings) -> None:
        """Trains, unless the election is lost meanwhile; a failure costs this collection a pause and nothing else."""
        training = asyncio.create_task(self._train(record, held), name=f"train a codebook for {record.name}")
        try:
            while not training.done():
                if not self._coordinator.leading or self._coordinator.state.by_uid(record.uid) is None:
                    _log.info("the training for collection %s is left: not ours to finish any more", record.name)
                    return
                await asyncio.wait([training], timeout=LEADING_CHECK_S)
            training.result()
            self._pauses.pop(record.uid, None)
        except Conflict as error:
            _log.info("the codebook of collection %s is not stored: %s", record.name, error)
        except (VectorfleetError, grpc.RpcError) as error:
            failures = self._failures(record.uid) + 1
            pause_s = min(RETRY_FIRST_S * 2 ** (failures - 1), RETRY_MAX_S)
            self._pauses[record.uid] = _Pause(time.monotonic() + pause_s, failures)
            why = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
            _log.warning("training for collection %s failed: %s; next try in %.0f s", record.name, why, pause_s)
        finally:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)

    async def _train(self, record: CollectionRecord, held: Holdings) -> None:
        state = self._coordinator.state
        node = trainer(record, held, state, self._failures(record.uid))
        if node is None:
            return
        index = record.index
        shape = codebook_shape(index.kind, record.dim, held.total, len(record.shards), index.nlist, index.m)
        limits = assignment.sample_limits(shape.nlist, record.dim, held.points)
        primaries = {shard.shard: shard.primary for shard in record.shards}
        version = record.codebook.version + 1 if record.codebook is not None else 1
        request = shard_service_pb2.TrainCodebookRequest(
            collection_uid=record.uid,
            epoch=state.epoch,
            version=version,
            kind=types_pb2.IndexKind.ValueType(index.kind),
            nlist=shape.nlist,
            m=shape.m,
            sources=[
                shard_service_pb2.SampleSource(shard=shard, address=state.nodes[primaries[shard]].address, limit=limit)
                for shard, limit in limits.items()
                if primaries[shard] in state.nodes
            ],
            seed=crc32(f"{record.uid}/{version}".encode()),
        )
        _log.info(
            "node %s trains codebook %d of collection %s: %d points, %d lists, m %d",
            *(node.id, version, record.name, held.total, shape.nlist, shape.m),
        )
        trained = await self._nodes.stub(node.address).TrainCodebook(request, timeout=TRAIN_TIMEOUT_S)
        codebook = CodebookRecord(
            version=version,
            checksum=trained.checksum,
            nlist=shape.nlist,
            m=shape.m,
            trained_points=held.total,
            node=node.id,
            trained_seqno=held.seqnos,
        )
        await self._store(record.uid, codebook)

    async def _store(self, uid: str, codebook: CodebookRecord) -> None:
        """Makes a codebook the collection's current one, whatever else of the record changed meanwhile."""
        for _ in range(STORE_ATTEMPTS):
            record = self._coordinator.state.by_uid(uid)
            if record is None:
                raise Conflict("the collection is gone")
            if record.codebook is not None and record.codebook.version >= codebook.version:
                raise Conflict(f"it has version {record.codebook.version} already")
            try:
                await self._coordinator.update_collection(replace(record, codebook=codebook))
            except Conflict:
                await asyncio.sleep(POLL_FIRST_S)  # the watch brings the newer record
            else:
                _log.info("collection %s has codebook %d", record.name, codebook.version)
                return
        raise Conflict("it changes all the time")

    def _failures(self, uid: str) -> int:
        pause = self._pauses.get(uid)
        return 0 if pause is None else pause.failures


def holdings(
    record: CollectionRecord, state: ClusterState, descriptions: Mapping[str, shard_service_pb2.DescribeResponse]
) -> Holdings:
    """Adds up what the primaries of a collection's shards say.

    Args:
        record: the collection.
        state: which nodes are alive.
        descriptions: of the nodes that answered, by node id.
    """
    replicas = {
        (node_id, replica.shard): replica
        for node_id, answer in descriptions.items()
        for replica in answer.replicas
        if replica.collection_uid == record.uid
    }
    points, seqnos, quiet, complete = {}, 0, True, record.assigned
    version = record.codebook.version if record.codebook is not None else 0
    for shard in record.shards:
        replica = replicas.get((shard.primary, shard.shard))
        if replica is not None and replica.state.status == cluster_service_pb2.REPLICA_STATUS_SERVING:
            points[shard.shard] = replica.state.points
            seqnos += replica.state.applied_seqno
            quiet &= replica.settled and replica.state.codebook_version == version
        elif shard.primary in state.nodes:
            complete &= replica is not None and replica.state.status == cluster_service_pb2.REPLICA_STATUS_FAILED
    return Holdings(points, seqnos, quiet, complete)


def trainer(record: CollectionRecord, held: Holdings, state: ClusterState, failures: int) -> NodeInfo | None:
    """Chooses the node that trains: the one that holds most of the sample, and after each failure the next one."""
    points: dict[str, int] = {}
    for shard in record.shards:
        if shard.primary in state.nodes and shard.shard in held.points:
            points[shard.primary] = points.get(shard.primary, 0) + held.points[shard.shard]
    ranked = sorted(points, key=lambda node: (-points[node], node))
    return state.nodes[ranked[failures % len(ranked)]] if ranked else None
