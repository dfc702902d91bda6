"""One router put together, and its life from the open port to the last answer.

Life: the port is open (live) → etcd's state is loaded (ready) → stop: not ready, no new calls, those under way get a few
seconds, the election is given up. Calls that come before the state is loaded are refused with COORDINATOR_UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from router import cluster_service, collection_service, key_service, point_service, search_service
from router.access.settings import Access, AccessSettings
from router.backups import Backups
from router.budget import Budgets
from router.catalog import Catalog
from router.cluster_service import ClusterService
from router.collection_service import CollectionService
from router.controller import Controller
from router.diagnostics import Diagnostics
from router.embedding import Embedder
from router.fanout import Fanout
from router.key_service import KeyService
from router.metrics import RouterGauges, RouterMetrics
from router.nodes import NodePool
from router.point_service import PointService
from router.reads import Reads
from router.recall_check import RATE_DEFAULT, RecallChecks
from router.search_service import SearchService
from router.searches import Searches
from router.shard_calls import ShardCalls
from router.shedding import Shedding
from router.writes import Writes
from vectorfleet import serving
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.metrics import Metrics
from vectorfleet.metrics_endpoint import MetricsEndpoint
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.transport import Transport
from vectorfleet.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from vectorfleet.v1.collection_service_pb2_grpc import add_CollectionServiceServicer_to_server
from vectorfleet.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from vectorfleet.v1.point_service_pb2_grpc import add_PointServiceServicer_to_server

SERVICES: Final = (
    collection_service.NAME,
    point_service.NAME,
    search_service.NAME,
    cluster_service.NAME,
    key_service.NAME,
)
DRAIN_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 3.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What the command line decides."""

    router_id: str
    host: str = "127.0.0.1"
    port: int = 0
    health_port: int | None = None
    """In the clear, for probes; None: none."""
    reuse_port: bool = False
    embed_threads: int = 0
    """0: half of the cores."""
    batches_in_flight: int = 2
    memory_bytes: int = 1 << 62
    """The ceiling on what it admits."""
    access: AccessSettings = field(default_factory=AccessSettings)
    metrics_address: tuple[str, int] | None = None
    """(host, port) of the metrics; None: nothing is counted."""
    recall_check_rate: float = RATE_DEFAULT
    """Searches a second that are asked again with `exact`; 0, or no metrics: none."""


class Router:
    """A router. Made within a running event loop; `run` is called once."""

    def __init__(
        self,
        coordinator: Coordinator,
        settings: RouterSettings,
        transport: Transport | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Puts the parts together; nothing runs yet.

        Args:
            coordinator: not started.
            settings: what the command line decides.
            transport: how it listens and dials; None: in the clear.
            telemetry: is told of every call; None: nothing is.

        Raises:
            OSError: a file of `settings.access` cannot be opened.
            ValueError: it does not hold what it should.
        """
        self._transport = transport or Transport()
        self._coordinator = coordinator
        self._settings = settings
        self._stopping = asyncio.Event()
        self._nodes = NodePool(self._transport)
        self._embedder = Embedder(threads=settings.embed_threads)
        telemetry = telemetry or Telemetry()
        metrics = Metrics("router", enabled=settings.metrics_address is not None)
        counted = RouterMetrics(metrics)
        self._fanout = fanout = Fanout(coordinator, self._nodes, counted.hedged)
        self._searches = Searches(fanout, in_flight_max=settings.batches_in_flight)
        if metrics.enabled:
            telemetry.observe(counted.ended)
        self._access = Access(settings.access, coordinator)
        told = (lambda: self._searches.queued), (lambda: self._access.audit_lines_lost)
        gauges = RouterGauges(metrics, counted, coordinator, self._nodes, self._embedder, *told)
        self._metrics = MetricsEndpoint(metrics, gauges.refresh)
        if metrics.enabled:
            telemetry.metrics = self._metrics.text
        self.metrics_address = ""
        """host:port where metrics are served; "": not at all, or not yet."""
        rate = settings.recall_check_rate if metrics.enabled else 0.0
        self._checks = RecallChecks(fanout, counted, lambda: self._searches.queued > 0, rate=rate)
        self._controller = Controller(coordinator, self._nodes, settings.router_id)
        self._shedding = Shedding(counted.denied)
        gates = [] if self._access.gate is None else [self._access.gate]
        for gate in gates:
            gate.observe(counted.denied)
        doors = self._shedding, *gates
        self._server = serving.new_server(outermost=doors, reuse_port=settings.reuse_port, telemetry=telemetry)
        self._health = serving.LiveReadyHealth()
        self._probes = serving.HealthPort(self._health, settings.host, settings.health_port)

        budgets = Budgets.under(settings.memory_bytes)
        catalog = Catalog(coordinator, self._nodes, self._embedder)
        calls = ShardCalls(coordinator, self._nodes)
        reads = Reads(coordinator, self._nodes, calls)
        points = PointService(catalog, Writes(calls), reads, self._embedder, budgets)
        # First: gRPC asks one service after another, in the order in which they were added, whether a method is its own.
        watchers = telemetry, counted, self._checks
        searching = SearchService(catalog, self._searches, reads, self._embedder, self._stopping, *watchers, budgets)
        searching.install(self._server)
        add_CollectionServiceServicer_to_server(CollectionService(catalog), self._server)
        add_PointServiceServicer_to_server(points, self._server)
        backups = Backups(coordinator, self._nodes, catalog, calls)
        diagnostics = Diagnostics(coordinator, self._nodes, telemetry, settings.router_id)
        add_ClusterServiceServicer_to_server(
            ClusterService(coordinator, self._nodes, backups, diagnostics, budgets), self._server
        )
        add_KeyServiceServicer_to_server(KeyService(coordinator, authenticating=self._access.required), self._server)
        self._health.install(self._server, SERVICES)

    async def run(self, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Serves until `stopping` is set.

        Args:
            stopping: ends it.
            on_ready: called with the bound host:port once the first state of the cluster is loaded.

        Raises:
            OSError: a port cannot be had.
        """
        address = self._transport.listen(self._server, self._settings.host, self._settings.port)
        try:
            if self._settings.metrics_address is not None:
                self.metrics_address = await self._metrics.listen(*self._settings.metrics_address)
            await self._server.start()
            await self._probes.start()
            served = self.metrics_address or "no port"
            _log.info("router %s listens on %s, metrics on %s", self._settings.router_id, address, served)
            async with asyncio.TaskGroup() as group:
                for_ever = [
                    group.create_task(self._join(address, on_ready), name="following the shard map"),
                    group.create_task(self._transport.follow(), name="following the certificates"),
                    group.create_task(self._checks.run(), name="checking recall"),
                    group.create_task(self._access.run(), name="following keys"),
                    group.create_task(self._shedding.run(), name="watching the event loop"),
                ]
                await stopping.wait()
                _log.info("router %s stops", self._settings.router_id)
                self._health.stop()
                self._stopping.set()
                await self._server.stop(DRAIN_S)
                for task in for_ever:
                    task.cancel()
        finally:
            await self._close()

    async def _join(self, address: str, on_ready: Callable[[str], None]) -> None:
        await self._coordinator.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._nodes.follow(self._coordinator), name="following the nodes")
            group.create_task(self._controller.run(), name="controller")
            self._health.set_ready(True)
            on_ready(address)

    async def _close(self) -> None:
        self._health.stop()
        await self._metrics.close()
        await self._server.stop(0)
        await self._probes.stop()
        await asyncio.to_thread(self._access.close)
        await self._searches.close()
        await self._fanout.close()
        await self._embedder.close()
        await self._nodes.close()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._coordinator.close()
        except TimeoutError:
            _log.warning("etcd did not take the lease back; it lapses by itself")
