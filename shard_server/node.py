"""One node put together: pools, host, service, maintenance; and its life from the open port to the released lease.

Life: what was held is opened → the port is open (live) → etcd's state is loaded → all assigned replicas are opened and searched →
the node registers (ready) → stop: not ready, no new calls, those in flight get a few seconds, replicas are closed, the
lease is given back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server import node_memory, service
from shard_server.backup.archive import Archive, ArchivePools
from shard_server.backup.places import Roots
from shard_server.budget import ByteBudget
from shard_server.codebook_store import CodebookStore
from shard_server.codebooks import Codebooks
from shard_server.data_dir import DataDir
from shard_server.engine import snapshot
from shard_server.engine.index import Codebook, train_codebook
from shard_server.engine.memory import OPENING, EngineMemory, opening_bytes
from shard_server.engine.replica import Replica
from shard_server.engine.state import ReplicaIdentity
from shard_server.engine.store import StoreMemory
from shard_server.engine.upkeep import EngineSettings
from shard_server.gauges import ShardGauges
from shard_server.hosting import HostPools, ReplicaHost
from shard_server.maintenance import Maintenance
from shard_server.metrics import ShardMetrics
from shard_server.peers import Peers
from shard_server.searching import Searcher
from shard_server.service import ServicePools, ShardServicer
from shard_server.threads import WorkPool
from shard_server.training import Training
from vectorfleet import serving
from vectorfleet._version import __version__
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo
from vectorfleet.identity import SHARD, TRUST_DOMAIN_DEFAULT, MembersOnly
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1.shard_service_pb2_grpc import add_ShardServiceServicer_to_server
from vectorfleet.ledger import Ledger
from vectorfleet.metrics import Metrics
from vectorfleet.metrics_endpoint import MetricsEndpoint
from vectorfleet.refusals import Refusals
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.transport import Transport

SEARCHES_WAITING_MAX: Final = 1024
READS_WAITING_MAX: Final = 1024
COMMIT_THREADS: Final = 8
"""A commit waits for the disk, and for a sealing that is behind: one slow replica must not hold up the others."""
REPLICAS_MAX: Final = 100_000
"""Bounds work of which there is one piece a replica."""
BACKGROUND_NICE: Final = 10
QUIET_NICE: Final = 19
QUIET_WAITING_MAX: Final = 64
"""Shards of a few routers' recall checks."""
PEERS: Final = {f"/{service.NAME}/{method}": frozenset({SHARD}) for method in ("FetchCodebook", "Sample")}
"""What shard servers ask of one another; everything else is routers' to ask."""
WARM_UP_TIMEOUT_S: Final = 10.0
"""Of all replicas together, before a node is ready."""
DRAIN_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 3.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the command line decides."""

    host: str = "127.0.0.1"
    port: int = 0
    health_port: int | None = None
    """In the clear, for probes; None: none."""
    advertise: str = ""
    """host:port; "": host and the bound port."""
    search_threads: int = 0
    """0: one for each core."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    trust_domain: str = TRUST_DOMAIN_DEFAULT
    """Of the processes that may call this one, where certificates say who calls."""
    backup_roots: tuple[str, ...] = ()
    """Where it may write and read backups."""
    metrics_address: tuple[str, int] | None = None
    """(host, port) of the metrics; None: nothing is counted."""
    memory_bytes: int = 1 << 62
    """The ceiling on what it admits."""


class Node:
    """A shard server. Made within a running event loop; `run` is called once."""

    def __init__(
        self,
        data: DataDir,
        coordinator: Coordinator,
        settings: NodeSettings,
        transport: Transport | None = None,
        refusals: Refusals | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Puts the parts together; nothing runs yet.

        Args:
            data: this node's folder.
            coordinator: not started.
            settings: what the command line decides.
            transport: how it listens and dials; None: in the clear.
            refusals: is told who was turned away; None: the log alone.
            telemetry: is told of every call; None: nothing is.
        """
        telemetry = telemetry or Telemetry()
        self._transport = transport or Transport()
        self._coordinator = coordinator
        self._settings = settings
        self._node_id = data.node_id
        self._stopping = asyncio.Event()
        search = WorkPool("search", threads=settings.search_threads or cores(), waiting_max=SEARCHES_WAITING_MAX)
        reads = WorkPool("read", threads=2, waiting_max=READS_WAITING_MAX)
        control = WorkPool("control", threads=2, waiting_max=READS_WAITING_MAX)
        commit = WorkPool("commit", threads=COMMIT_THREADS, waiting_max=REPLICAS_MAX)
        lifecycle = WorkPool("lifecycle", threads=4, waiting_max=REPLICAS_MAX)
        sealing = WorkPool("sealing", threads=1, waiting_max=REPLICAS_MAX, nice=BACKGROUND_NICE)
        background = WorkPool("background", threads=1, waiting_max=REPLICAS_MAX, nice=BACKGROUND_NICE)
        training = WorkPool("training", threads=1, waiting_max=REPLICAS_MAX, nice=BACKGROUND_NICE)
        backup = WorkPool("backup", threads=2, waiting_max=REPLICAS_MAX, nice=BACKGROUND_NICE)
        manifests = WorkPool("backup manifests", threads=1, waiting_max=READS_WAITING_MAX)
        quiet = WorkPool("quiet search", threads=1, waiting_max=QUIET_WAITING_MAX, nice=QUIET_NICE)
        behind = (sealing, background, training, backup, manifests, quiet)
        self._pools = (search, reads, control, commit, lifecycle, *behind)
        shares = node_memory.shares(settings.memory_bytes)
        self._ledger = Ledger(settings.memory_bytes, shares)
        self._memory = EngineMemory(self._ledger, StoreMemory(shares[node_memory.STORES]))
        write_budget = ByteBudget("writes that wait", shares[node_memory.WRITES])
        search_budget = ByteBudget("queries that wait", shares[node_memory.SEARCHES])

        self._peers = Peers(self._transport)
        store = CodebookStore(data.codebooks)
        self._maintenance = Maintenance(lambda: self._host.replicas, sealing, background)
        self._archive = Archive(
            data.node_id,
            Roots(settings.backup_roots),
            store,
            _adopt,
            ArchivePools(snapshots=lifecycle, copies=backup, manifests=manifests),
        )
        self._host = ReplicaHost(
            data,
            self._open_replica,
            self._archive.restore,
            Codebooks(store, self._peers, lifecycle, Codebook.load),
            self._peers,
            HostPools(lifecycle, commit),
            write_budget,
            self._maintenance.notify,
        )
        self._training = Training(store, self._peers, reads, training, _train, self._ledger)
        self._searcher = searcher = Searcher(self._host, search, quiet, search_budget)
        self._servicer = ShardServicer(
            *(self._host, searcher, self._training, self._archive, store, ServicePools(reads, control)),
            *(data.path, self._ledger, self._stopping, telemetry),
        )
        told = (refusals or Refusals()).caller
        members = [MembersOnly(settings.trust_domain, PEERS, told)] if self._transport.identifies else []
        self._server = serving.new_server(members, telemetry=telemetry)
        metrics = Metrics("shard", enabled=settings.metrics_address is not None)
        counted = ShardMetrics(metrics)
        if metrics.enabled:
            telemetry.observe(counted.ended)
        gauges = ShardGauges(
            metrics,
            coordinator,
            lambda: self._host.replicas,
            self._pools,
            {"searches": search_budget, "writes": write_budget},
            store,
            data.path,
            settings.engine.min_free_bytes,
        )
        self._metrics = MetricsEndpoint(metrics, gauges.refresh)
        if metrics.enabled:
            telemetry.metrics = self._metrics.text
        self.metrics_address = ""
        """host:port where metrics are served; "": not at all, or not yet."""
        self._health = serving.LiveReadyHealth()
        self._probes = serving.HealthPort(self._health, settings.host, settings.health_port)

    async def run(self, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> bool:
        """Serves until `stopping` is set.

        Args:
            stopping: ends it.
            on_ready: called with the bound host:port once this node is registered and has opened its replicas.

        Returns:
            Whether everything was closed. False: a thread is still busy with a replica; nothing acknowledged is lost.

        Raises:
            OSError: a port cannot be had.
        """
        address = self._listen()
        try:
            if self._settings.metrics_address is not None:
                self.metrics_address = await self._metrics.listen(*self._settings.metrics_address)
            await self._host.open_known()
            await self._server.start()
            await self._probes.start()
            _log.info("node %s listens on %s, metrics on %s", self._node_id, address, self.metrics_address or "no port")
            async with asyncio.TaskGroup() as group:
                for_ever = [
                    group.create_task(self._maintenance.run(), name="background work"),
                    group.create_task(node_memory.watch(self._ledger), name="measuring memory"),
                    group.create_task(self._join(address, on_ready), name="following the shard map"),
                    group.create_task(self._transport.follow(), name="following the certificates"),
                ]
                await stopping.wait()
                _log.info("node %s stops", self._node_id)
                self._health.stop()
                self._stopping.set()
                await self._server.stop(DRAIN_S)
                for task in for_ever:
                    task.cancel()
        finally:
            closed = await self._close()
        return closed

    def _listen(self) -> str:
        add_ShardServiceServicer_to_server(self._servicer, self._server)
        self._health.install(self._server, [service.NAME])
        address = self._transport.listen(self._server, self._settings.host, self._settings.port)
        self._servicer.address = self._settings.advertise or address
        return address

    async def _join(self, address: str, on_ready: Callable[[str], None]) -> None:
        await self._coordinator.start()
        self._host.join(self._coordinator.state)
        self._host.apply(self._coordinator.state)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._host.follow(self._coordinator))
            await self._host.all_opened()
            await self._searcher.warm_up(WARM_UP_TIMEOUT_S)
            await self._coordinator.register(NodeInfo(self._node_id, self._servicer.address, __version__))
            self._health.set_ready(True)
            on_ready(address)

    async def _close(self) -> bool:
        self._health.stop()
        await self._metrics.close()
        await self._server.stop(0)
        await self._probes.stop()
        await self._training.close()
        await self._archive.close()
        closed = await self._host.close()
        await self._peers.close()
        for pool in self._pools:
            pool.close()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._coordinator.close()
        except TimeoutError:
            _log.warning("etcd did not take the lease back; it lapses by itself")
        return closed and all(pool.idle for pool in self._pools)

    def _open_replica(
        self, directory: Path, record: CollectionRecord, shard: int, codebooks: Sequence[Codebook]
    ) -> Replica:
        current = codebooks[-1] if codebooks else None
        with self._ledger.reserving(OPENING, opening_bytes(directory)):
            return Replica.open(
                directory, _identity(record, shard), self._settings.engine, current, codebooks[:-1], self._memory
            )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _identity(record: CollectionRecord, shard: int) -> ReplicaIdentity:
    return ReplicaIdentity(record.uid, shard, record.dim, record.metric, record.index.kind)


def _adopt(directory: Path, record: CollectionRecord, shard: int) -> None:
    snapshot.adopt(directory, _identity(record, shard))


def _train(sample: NDArray[np.float32], request: pb.TrainCodebookRequest, record: CollectionRecord) -> bytes:
    return train_codebook(
        sample,
        kind=request.kind or record.index.kind,
        metric=record.metric,
        nlist=request.nlist,
        m=request.m,
        seed=request.seed % 2**31,  # FAISS takes a C int
    )
