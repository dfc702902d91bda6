"""What a router counts: its searches stage by stage, what they cover, and how it sees the cluster.

Calls and their stages are read off the work that telemetry keeps of each, when it has ended; series are looked up once. Gauges
are set when somebody scrapes (`RouterGauges.refresh`), from what the router knows anyway: no node is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from router.embedding import Embedder
from router.hedging import CAUSES, OUTCOMES
from router.nodes import NodePool
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord
from vectorfleet.metrics import COUNTS, STAGE_S, Calls, Counter, Metrics, Names
from vectorfleet.telemetry.work import Work
from vectorfleet.v1 import types_pb2

STAGES: Final = {
    "validate": "the request is checked",
    "embed": "texts become vectors",
    "queue": "a search waits to travel with others",
    "fan_out": "its batch is asked of the nodes, until the last has answered",
    "merge": "the shards' hits become one order",
    "render": "the answer is put together",
}


class RouterMetrics:
    """What happens to searches."""

    def __init__(self, metrics: Metrics) -> None:
        self._calls = Calls(metrics)
        stages = metrics.histogram(
            "search_stage_seconds", f"Time in a part of a search ({', '.join(STAGES)})", STAGE_S, "stage"
        )
        self._stages = {stage: stages.labels(stage).observe for stage in STAGES}
        batch = metrics.histogram("batch_queries", "Queries that travelled together, as each search saw it", COUNTS)
        self._batch_queries = batch.observe
        self._denied = metrics.counter(
            "denied_total", "Calls turned away at the door: no valid key, not allowed, over a caller's limit", "reason"
        )
        self._answers = metrics.counter(
            "answers_total", "Answered searches; complete: all shards answered, else partial", "collection", "coverage"
        )
        self._missing = metrics.counter(
            "missing_shards_total", "Shards missing from answers, by the node that holds them and why", "node", "reason"
        )
        self._checks = metrics.counter(
            "recall_checks_total",
            "Searches that were to be asked again with `exact`: measured, dropped under load, failed",
            "outcome",
        )
        self._expected = metrics.counter(
            "recall_expected_hits_total", "Hits that checked searches should have found", "collection"
        )
        self._found = metrics.counter(
            "recall_found_hits_total", "Hits that they found; divided by the expected ones: recall", "collection"
        )
        hedges = metrics.counter(
            "hedges_total",
            "Questions to a node that were put to other copies as well, since it was slow or failed (error): whether these won "
            "or lost; refused: there was no token for it",
            "cause",
            "outcome",
        )
        self._hedges = {(cause, outcome): hedges.labels(cause, outcome) for cause in CAUSES for outcome in OUTCOMES}
        self._names = Names()
        self._by_answer: dict[tuple[str, bool], Counter] = {}
        self._by_node: dict[tuple[str, str], Counter] = {}

    def ended(self, work: Work) -> None:
        """Counts a call by its work, and the stages of a search."""
        if self._calls.ended(work) != "Search":
            return
        for stage, seconds in work.spent_s.items():
            self._stages[stage](seconds)
        for batch in work.parts:
            merge_s = batch.spent_s.get("merge", 0.0)
            self._stages["merge"](merge_s)
            self._stages["fan_out"](batch.took_ns / 1e9 - merge_s)
            self._batch_queries(batch.facts["queries"])

    def denied(self, reason: str) -> None:
        """Counts a call that was turned away before a handler ran."""
        self._denied.labels(reason).inc()

    def answered(self, record: CollectionRecord, coverage: types_pb2.Coverage) -> None:
        """Counts an answer and what is missing in it."""
        complete = not coverage.missing
        counter = self._by_answer.get((record.name, complete))
        if counter is None:
            counter = self._counter_of(record.name, complete)
        counter.inc()
        if complete:
            return
        nodes = {shard.shard: shard.primary for shard in record.shards}
        for missing in coverage.missing:
            key = nodes.get(missing.shard, ""), missing.reason
            if key not in self._by_node:
                self._by_node[key] = self._missing.labels(*key)
            self._by_node[key].inc()

    def hedged(self, cause: str, outcome: str) -> None:
        """Counts a question that was put to other copies as well, or was not for want of tokens."""
        self._hedges[cause, outcome].inc()

    def recall_checked(self, outcome: str) -> None:
        """Counts a check: measured, dropped or failed."""
        self._checks.labels(outcome).inc()

    def recalled(self, record: CollectionRecord, found: int, expected: int) -> None:
        """Adds up a check's hits."""
        name = self._names.label(record.name)
        self._expected.labels(name).inc(expected)
        self._found.labels(name).inc(found)

    def _counter_of(self, collection: str, complete: bool) -> Counter:
        name = self._names.label(collection)
        key = name, complete
        if key not in self._by_answer:
            for one in (True, False):  # both from the start: Prometheus sees no growth from nothing to one
                self._by_answer[name, one] = self._answers.labels(name, _coverage(one))
        return self._by_answer[key]

    def retain(self, collections: Collection[str], nodes: Collection[str]) -> None:
        """Forgets the series of collections and nodes that are gone."""
        for name in self._names.retain(collections):
            self._expected.remove(name)
            self._found.remove(name)
            for complete in (True, False):
                if self._by_answer.pop((name, complete), None) is not None:
                    self._answers.remove(name, _coverage(complete))
        for key in [key for key in self._by_node if key[0] and key[0] not in nodes]:
            del self._by_node[key]
            self._missing.remove(*key)


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a shard map adds up to."""

    state: ClusterState
    nodes: frozenset[str]
    """Registered, or holding shards."""
    shards: Mapping[str, int]

    @classmethod
    def of(cls, state: ClusterState) -> _Survey:
        shards = [shard for record in state.collections.values() for shard in record.shards]
        away = sum(1 for shard in shards if shard.primary and shard.primary not in state.nodes)
        unassigned = sum(1 for shard in shards if not shard.primary)
        nodes = frozenset(node for shard in shards for node in shard.replicas) | frozenset(state.nodes)
        counts = {"served": len(shards) - away - unassigned, "away": away, "unassigned": unassigned}
        return cls(state, nodes, counts)


class RouterGauges:
    """How the router sees itself and the cluster, set anew for each scrape."""

    def __init__(
        self,
        metrics: Metrics,
        counted: RouterMetrics,
        coordinator: Coordinator,
        nodes: NodePool,
        embedder: Embedder,
        queued: Callable[[], int],
        audit_lost: Callable[[], int],
    ) -> None:
        """Sets nothing yet.

        Args:
            metrics: where they are kept.
            counted: whose series of what is gone are forgotten as well.
            coordinator: etcd.
            nodes: the ways to the nodes.
            embedder: texts that wait.
            queued: queries that wait.
            audit_lost: lines of the audit log that could not be written.
        """
        self._counted = counted
        self._coordinator = coordinator
        self._nodes = nodes
        self._embedder = embedder
        self._queries = queued
        self._audit_lost = audit_lost
        self._surveyed = _Survey.of(ClusterState())
        self._queued_queries = metrics.gauge("queued_queries", "Queries that wait to travel with others")
        self._queued_texts = metrics.gauge("queued_texts", "Texts that wait to be embedded")
        self._registered = metrics.gauge(
            "node_registered",
            "1: the node holds its lease in etcd; 0: shards are assigned to it, and it is away",
            "node",
        )
        self._circuit = metrics.gauge("node_circuit_open", "1: the node does not answer and is passed over", "node")
        self._calls = metrics.gauge("node_calls", "Calls under way to the node, without searches on its stream", "node")
        self._p95 = metrics.gauge(
            "node_tail_seconds",
            "The time within which the node answered 95 of 100 searches in the last 10 to 20 seconds; 0: it was asked for none",
            "node",
        )
        self._collections = metrics.gauge("collections", "Collections in the shard map")
        self._shards = metrics.gauge(
            "shards",
            "Shards of all collections: assigned to a registered node, to one that is away, or unassigned",
            "state",
        )
        self._epoch = metrics.gauge("shard_map_epoch", "etcd's revision of the shard map in use")
        self._leads = metrics.gauge("is_controller", "1: this router holds the election")
        self._silence = metrics.gauge("etcd_silence_seconds", "Time since etcd last answered this process")
        self._audit_lines = metrics.gauge(
            "audit_lines_lost", "Lines that the audit log lost since the process began: its disk is full or too slow"
        )

    async def refresh(self) -> None:
        """Sets all of them to what holds now."""
        state = self._coordinator.state
        if state is not self._surveyed.state:  # a walk over all shards, which calls would wait for
            self._surveyed = _Survey.of(state)
        named = self._surveyed.nodes
        self._counted.retain(state.collections.keys(), named)
        now_s = time.monotonic()
        for gauge in (self._registered, self._circuit, self._calls, self._p95):
            gauge.clear()
        for node in named:
            way = self._nodes.known(node)
            self._registered.labels(node).set(node in state.nodes)
            self._circuit.labels(node).set(way is not None and way.circuit.open)
            self._calls.labels(node).set(0 if way is None else len(way.under_way))
            self._p95.labels(node).set(0 if way is None else way.latency.quantile_s(0.95, now_s))
        for what, count in self._surveyed.shards.items():
            self._shards.labels(what).set(count)
        self._collections.set(len(state.collections))
        self._queued_queries.set(self._queries())
        self._queued_texts.set(self._embedder.waiting)
        self._epoch.set(state.epoch)
        self._leads.set(self._coordinator.leading)
        self._silence.set(self._coordinator.silence_s(now_s))
        self._audit_lines.set(self._audit_lost())


def _coverage(complete: bool) -> str:
    return "complete" if complete else "partial"
