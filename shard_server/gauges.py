"""How a node's replicas, queues, memory and disk stand, set anew for each scrape.

Replicas are asked one after another, in threads, so that the loop is never held up; and where there are so many that this takes
long, not at each scrape: asking takes at most a twentieth of the time. What is shown of collections is bounded: the largest have
series of their own, the others share one. Shards are named where they are in trouble alone, so many at most.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from shard_server.budget import ByteBudget
from shard_server.codebook_store import CodebookStore
from shard_server.describing import Measured, measure
from shard_server.engine import disk
from shard_server.hosted import HostedReplica
from shard_server.threads import WorkPool
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.errors import VectorfleetError
from vectorfleet.metrics import NAMES_MAX, OTHERS, Gauge, Metrics
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb

TROUBLED_MAX: Final = 20
"""Shards that are named."""
SHARE_MAX: Final = 0.05
"""Of the time, for asking replicas."""
REPLICA_TIMEOUT_S: Final = 1.0
STATUSES: Final = {
    cluster_pb.REPLICA_STATUS_SERVING: "serving",
    cluster_pb.REPLICA_STATUS_LOADING: "loading",
    cluster_pb.REPLICA_STATUS_FAILED: "failed",
}
OF_COLLECTIONS: Final = {
    "points": "Live points",
    "indexed_points": "Live points that are searched through codes of the current codebook, or too few for them",
    "buffered_points": "Live points in buffers, not sealed yet",
    "tombstones": "Dead rows of segments",
    "segments": "Segments",
    "unsealed_writes": "Log entries behind the newest that segments do not hold yet",
    "disk_bytes": "Bytes of segments on disk",
}
"""Gauges by collection: the attribute of `ReplicaStats` that they add up, and what it means."""
_log = logging.getLogger(__name__)


class ShardGauges:
    """The state of one node."""

    def __init__(
        self,
        metrics: Metrics,
        coordinator: Coordinator,
        replicas: Callable[[], Iterable[HostedReplica]],
        pools: Sequence[WorkPool],
        budgets: Mapping[str, ByteBudget],
        store: CodebookStore,
        data: Path,
        reserve_bytes: int,
    ) -> None:
        """Sets nothing yet.

        Args:
            metrics: where they are kept.
            coordinator: etcd.
            replicas: those held at the moment of the call.
            pools: all threads.
            budgets: bytes in memory by what they are for.
            store: codebook files.
            data: the node's folder.
            reserve_bytes: free space below which upserts are refused.
        """
        self._coordinator = coordinator
        self._held = replicas
        self._pools = pools
        self._control = next(pool for pool in pools if pool.name == "control")
        self._budgets = budgets
        self._store = store
        self._data = data
        self._reserve = reserve_bytes
        self._process = psutil.Process()
        self._measured: dict[HostedReplica, Measured] = {}
        self._measure_again_s = 0.0
        self._codebooks_since_s: dict[str, float] = {}

        self._waiting = metrics.gauge("pool_waiting", "Calls that wait for a thread", "pool")
        self._running = metrics.gauge("pool_running", "Calls that a thread works on, or is about to", "pool")
        self._budget = metrics.gauge("held_bytes", "Bytes of requests in memory", "kind")
        self._replicas = metrics.gauge("replicas", "Replicas by status", "status")
        self._refusing = metrics.gauge("replicas_refusing_writes", "Replicas that serve, but take no writes")
        self._troubled = metrics.gauge(
            "replica_troubled",
            f"1: failed, or takes no writes; {TROUBLED_MAX} are named at most",
            "collection",
            "shard",
        )
        self._sums = {name: metrics.gauge(name, meaning, "collection") for name, meaning in OF_COLLECTIONS.items()}
        self._codebook = metrics.gauge("codebook_version", "Of the newest codebook; 0: none yet", "collection")
        self._codebook_age = metrics.gauge(
            "codebook_age_seconds", "Time since this node has its newest codebook", "collection"
        )
        self._memory = metrics.gauge(
            "memory_bytes",
            "Of replicas: buffers, tombstones and filters are heap; codes, vectors and the rest are mapped files",
            "kind",
        )
        self._mapped = metrics.gauge(
            "mapped_resident_bytes", "Resident pages of mapped files, for the kernel to take back"
        )
        self._free = metrics.gauge("disk_free_bytes", "Free space of the data folder")
        self._reserved = metrics.gauge("disk_reserve_bytes", "Upserts are refused while less is free")
        self._epoch = metrics.gauge("shard_map_epoch", "etcd's revision of the shard map in use")
        self._silence = metrics.gauge("etcd_silence_seconds", "Time since etcd last answered this process")

    async def refresh(self) -> None:
        """Sets all of them to what holds now."""
        for pool in self._pools:
            self._waiting.labels(pool.name).set(pool.waiting)
            self._running.labels(pool.name).set(pool.running)
        for kind, budget in self._budgets.items():
            self._budget.labels(kind).set(budget.taken_bytes)
        self._epoch.set(self._coordinator.state.epoch)
        self._silence.set(self._coordinator.silence_s(time.monotonic()))
        held = list(self._held())
        start_s = time.monotonic()
        if start_s >= self._measure_again_s:
            await self._measure(held)
            names = {one.uid: one.record.name for one in held}
            self._codebooks_since_s = await self._control.run(self._look_for_codebooks, names)
            self._measure_again_s = time.monotonic() + (time.monotonic() - start_s) / SHARE_MAX
        present = set(held)
        self._measured = {one: found for one, found in self._measured.items() if one in present}
        self._show(held)
        self._show_codebooks({one.record.name for one in held})
        await self._control.run(self._look_at_the_machine)

    async def _measure(self, held: Sequence[HostedReplica]) -> None:
        measured = {}
        for one in held:
            if one.serving:
                try:
                    until_s = time.monotonic() + REPLICA_TIMEOUT_S
                    measured[one] = await one.run(self._control, until_s, measure)
                except VectorfleetError as error:  # it closes, or the node is busy
                    _log.debug("%s cannot be measured: %s", one.name, error)
        self._measured = measured

    def _show(self, held: Sequence[HostedReplica]) -> None:
        for gauge in (*self._sums.values(), self._codebook, self._troubled, self._memory):
            gauge.clear()
        statuses = Tally(STATUSES[one.status] for one in held)
        for status in STATUSES.values():
            self._replicas.labels(status).set(statuses[status])
        refusing = [one for one in held if (found := self._measured.get(one)) is not None and found.trouble]
        self._refusing.set(len(refusing))
        failed = [one for one in held if one.failure_reason]
        for one in [*failed, *refusing][:TROUBLED_MAX]:
            self._troubled.labels(one.record.name, str(one.shard)).set(1)
        memory: Tally[str] = Tally()
        points: Tally[str] = Tally({one.record.name: 0 for one in held})
        for one, found in self._measured.items():
            points[one.record.name] += found.stats.points
            memory.update(found.stats.bytes_of)
        for kind, size in memory.items():
            self._memory.labels(kind).set(size)
        label = {name: name for name, _ in points.most_common(NAMES_MAX)}
        self._set_sums(label)

    def _set_sums(self, label: Mapping[str, str]) -> None:
        sums: defaultdict[tuple[Gauge, str], int] = defaultdict(int)
        versions: defaultdict[str, int] = defaultdict(int)
        for one, found in self._measured.items():
            name = label.get(one.record.name, OTHERS)
            for attribute, gauge in self._sums.items():
                sums[gauge, name] += getattr(found.stats, attribute)
            versions[name] = max(versions[name], found.stats.codebook_version)
        for (gauge, name), total in sums.items():
            gauge.labels(name).set(total)
        for name, version in versions.items():
            if name != OTHERS:
                self._codebook.labels(name).set(version)

    def _look_for_codebooks(self, names: Mapping[str, str]) -> dict[str, float]:
        """Since when the newest codebook of each collection (uid → name) is here, by name; blocks."""
        found = {name: self._store.newest_since_s(uid) for uid, name in names.items()}
        return {name: since_s for name, since_s in found.items() if since_s is not None}

    def _look_at_the_machine(self) -> None:
        """Asks the kernel; blocks."""
        self._mapped.set(self._process.memory_info().shared)
        self._free.set(disk.free_bytes(self._data))
        self._reserved.set(self._reserve)

    def _show_codebooks(self, present: Collection[str]) -> None:
        self._codebook_age.clear()
        since_s = {name: since_s for name, since_s in self._codebooks_since_s.items() if name in present}
        for name in sorted(since_s, key=since_s.__getitem__)[:NAMES_MAX]:  # the oldest
            self._codebook_age.labels(name).set(max(0.0, time.time() - since_s[name]))
