"""What a router counts, and that neither callers nor nodes that come and go make it count without bound."""

from __future__ import annotations

import asyncio

from router.access.settings import Access, AccessSettings
from router.embedding import Embedder
from router.metrics import RouterGauges, RouterMetrics
from router.nodes import NodePool
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.metrics import NAMES_MAX, OTHERS, Metrics
from vectorfleet.v1 import types_pb2

COMPLETE = types_pb2.Coverage(shards_total=1, shards_answered=1)
PARTIAL = types_pb2.Coverage(
    shards_total=1, missing=[types_pb2.MissingShard(shard=0, reason="DEADLINE_EXCEEDED", message="…")]
)


def record(name: str, node: str = "n1") -> CollectionRecord:
    shard = ShardAssignment(0, 0, 2**64 - 1, primary=node, replicas=(node,) if node else ())
    return CollectionRecord(name, f"uid-{name}", 8, 1, (shard,))


class Counted:
    """A router's metrics over a cluster that a test changes."""

    def __init__(self) -> None:
        self.metrics = Metrics("router")
        self.events = RouterMetrics(self.metrics)
        self.cluster = StaticCluster()
        self.nodes = NodePool()
        coordinator = StaticCoordinator(self.cluster)
        self.gauges = RouterGauges(self.metrics, self.events, coordinator, self.nodes, Embedder(), lambda: 7, lambda: 3)

    async def scrape(self) -> set[str]:
        await self.gauges.refresh()
        return set(self.metrics.text()[0].decode().splitlines())

    async def named(self, word: str) -> set[str]:
        return {line for line in await self.scrape() if word in line and not line.startswith("#")}


async def test_answers_are_counted_by_what_they_cover_and_what_is_missing() -> None:
    counted = Counted()
    films = record("films")
    counted.cluster.change(nodes={"n1": NodeInfo("n1", "127.0.0.1:1")}, collections={"films": films})
    for coverage in (COMPLETE, COMPLETE, PARTIAL):
        counted.events.answered(films, coverage)
    lines = await counted.scrape()
    assert 'vectorfleet_router_answers_total{collection="films",coverage="complete"} 2.0' in lines
    assert 'vectorfleet_router_answers_total{collection="films",coverage="partial"} 1.0' in lines
    assert 'vectorfleet_router_missing_shards_total{node="n1",reason="DEADLINE_EXCEEDED"} 1.0' in lines
    assert 'vectorfleet_router_shards{state="served"} 1.0' in lines
    assert "vectorfleet_router_queued_queries 7.0" in lines
    assert "vectorfleet_router_audit_lines_lost 3.0" in lines


async def test_lines_that_the_audit_log_cannot_write_are_told() -> None:
    access = Access(AccessSettings(audit_log="/dev/full"), StaticCoordinator(StaticCluster()))
    try:
        assert access.audit_lines_lost == 0
        assert access._audit is not None
        access._audit.record(who="somebody")
        await asyncio.to_thread(access._audit.drain)
        assert access.audit_lines_lost == 1
    finally:
        await asyncio.to_thread(access.close)


async def test_ten_thousand_collections_have_a_bounded_number_of_series() -> None:
    counted = Counted()
    records = {name: record(name) for name in (f"c{number}" for number in range(10_000))}
    counted.cluster.change(collections=records)
    for one in records.values():
        counted.events.answered(one, PARTIAL)
    assert len(await counted.named("answers_total")) == 2 * (NAMES_MAX + 1)
    assert (
        f'vectorfleet_router_answers_total{{collection="{OTHERS}",coverage="partial"}} 9900.0' in await counted.scrape()
    )
    # Those that are deleted make room for others.
    counted.cluster.change(collections={"c9999": records["c9999"]})
    await counted.scrape()
    counted.events.answered(records["c9999"], COMPLETE)
    assert len(await counted.named("answers_total")) == 2 * 2
    assert 'vectorfleet_router_answers_total{collection="c9999",coverage="complete"} 1.0' in await counted.scrape()


async def test_a_node_that_leaves_takes_its_series_along() -> None:
    counted = Counted()
    films = record("films")
    both = {name: NodeInfo(name, f"127.0.0.1:{port}") for port, name in enumerate(("n1", "n2"), 1)}
    counted.cluster.change(nodes=both, collections={"films": films})
    counted.events.answered(films, PARTIAL)
    await counted.nodes.retain(counted.cluster.state)
    counted.nodes.at("127.0.0.1:1").circuit.probes_lost = 3
    assert await counted.named("node_circuit_open") == {
        'vectorfleet_router_node_circuit_open{node="n1"} 1.0',
        'vectorfleet_router_node_circuit_open{node="n2"} 0.0',
    }
    # A node that holds shards is missed; without any it is forgotten.
    counted.cluster.change(nodes={})
    assert await counted.named("node_registered") == {'vectorfleet_router_node_registered{node="n1"} 0.0'}
    assert 'vectorfleet_router_shards{state="away"} 1.0' in await counted.scrape()
    counted.cluster.change(collections={})
    assert await counted.named("node=") == set()
    assert await counted.named("films") == set()
    await counted.nodes.close()


async def test_shards_that_no_node_holds_are_told() -> None:
    counted = Counted()
    counted.cluster.change(collections={"films": record("films", node="")})
    counted.cluster.silence_s = 12.5
    lines = await counted.scrape()
    assert 'vectorfleet_router_shards{state="unassigned"} 1.0' in lines
    assert "vectorfleet_router_etcd_silence_seconds 12.5" in lines
    counted.events.answered(record("films", node=""), PARTIAL)
    assert 'vectorfleet_router_missing_shards_total{node="",reason="DEADLINE_EXCEEDED"} 1.0' in await counted.scrape()
