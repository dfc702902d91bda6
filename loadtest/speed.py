"""How fast the cluster answers and loads, beside bare FAISS on the same data, with the same parameters, in the same run.

Client, router, shard servers and etcd share the machine's cores; FAISS, afterwards, has them to itself. Lists visited are
as many as recall@10 of 0.95 takes, for both sides. Recall is that of the measured answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

import vectorfleet
from loadtest import bare_faiss, datasets, loading, processes, scoring, usage
from loadtest.asking import Target, Through, closed_loop, open_loop
from loadtest.callers import Asked, Load
from loadtest.records import Record
from vectorfleet.local import LocalCluster

K: Final = 10
OVERSAMPLE: Final = 10.0
RECALL: Final = 0.95
SECONDS: Final = 4.0
WARM_UP_S: Final = 1.0
INGEST_BATCH: Final = 1_000
INGEST_SHARE: Final = 0.5
"""Of the measured rate of loading, while searches are measured beside it."""
OPEN_LOOP_SHARE: Final = 0.5
"""Of what 64 callers got, as the rate at which queries come due."""
FRESH: Final = 200_000
"""Points that nobody stored before: to be ingested while searches are measured."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """One way of asking, and what of bare FAISS stands beside it."""

    label: str
    callers: int
    size: int
    through: Through
    beside: str
    """Of bare FAISS: "one", one by one on one thread; "threads", on a thread for each core; "batches"."""


WAYS: Final = (
    Way("one at a time", 1, 1, "client", "one"),
    Way("one at a time, stubs", 1, 1, "stubs", "one"),
    Way("16 callers", 16, 1, "client", "threads"),
    Way("16 callers, stubs", 16, 1, "stubs", "threads"),
    Way("64 callers", 64, 1, "client", "threads"),
    Way("64 callers, stubs", 64, 1, "stubs", "threads"),
    Way("batches of 100", 2, 100, "client", "batches"),
)


@dataclass(frozen=True)
class Loaded:
    """How the data went in."""

    points_s: float
    """Acknowledged points a second."""
    settled_s: float
    """From the first point until all is indexed."""
    parameters: bare_faiss.Parameters


@dataclass(frozen=True)
class Answered:
    """One way's figures of the cluster."""

    queries_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    recall: float
    cpu_ms: dict[str, float]
    """CPU milliseconds a query, by process."""

    @property
    def servers_cpu_ms(self) -> float:
        """Of routers and shard servers."""
        return sum(spent for name, spent in self.cpu_ms.items() if name.startswith(("router", "node")))


@dataclass(frozen=True)
class UnderLoad:
    """What the cluster does when queries come as they please, and when points come in meanwhile."""

    opened: Answered
    """Single queries that came due at half the rate that 64 callers got."""
    ingesting: Answered
    """64 callers beside writes."""
    ingested_points_s: float
    """Of those writes."""


@dataclass(frozen=True)
class Found:
    """All figures of a cluster on one set."""

    parameters: bare_faiss.Parameters
    """What it was asked with."""
    closed: dict[str, Answered]
    """By the label of the way."""
    resident_bytes: int
    """Of routers, shard servers and etcd, after the closed loops."""
    under_load: UnderLoad | None
    """None where there are no fresh points to write."""


def data_set(points: int) -> tuple[datasets.VectorSet, datasets.Floats]:
    """Draws vectors to store with queries for them, and fresh vectors of the same kind, float32 (FRESH, dim)."""
    drawn = datasets.synthetic(points, 128, queries=1_000 + min(FRESH, points))
    return replace(drawn, queries=drawn.queries[:1_000]), drawn.queries[1_000:]


def load(client: vectorfleet.Client, data: datasets.VectorSet) -> Loaded:
    """Writes a set into a collection of its name, one shard a node, and waits until it is indexed."""
    count, dim = data.base.shape
    client.create_collection(data.name, dim=dim, metric="l2")
    start_s = time.perf_counter()
    loading.load_vectors(client, data.name, data.base)
    written_s = time.perf_counter() - start_s
    codebook = loading.settle(client, data.name).codebook
    # The servers' own default, given explicitly, so that both sides visit as many lists.
    nprobe = max(1, min(codebook.nlist, max(40, round(1.25 * codebook.nlist**0.5))))
    parameters = bare_faiss.Parameters(codebook.nlist, codebook.m, nprobe, OVERSAMPLE, K)
    return Loaded(count / written_s, time.perf_counter() - start_s, parameters)


class Measurement:
    """The searches of one loaded cluster."""

    def __init__(self, fleet: LocalCluster, data: datasets.VectorSet, loaded: Loaded, log: Log) -> None:
        self._fleet = fleet
        self._data = data
        self._log = log
        self._bounds = scoring.nearest_distances(data.base, data.queries, K)
        self._stored = data.base
        self._target = Target(fleet.address, data.name, loaded.parameters)

    @property
    def parameters(self) -> bare_faiss.Parameters:
        """How hard all of them look."""
        return self._target.parameters

    def tune(self) -> None:
        """Visits more lists, in steps of a fifth, until recall reaches the bar."""
        while True:
            found = self._closed(Way("tuning", 2, 100, "client", ""), seconds=1.0)
            used = self.parameters
            self._log(f"nprobe {used.nprobe}: recall@{K} {found.recall:.4f}")
            if found.recall >= RECALL or used.nprobe == used.nlist:
                return
            wider = min(used.nlist, round(1.2 * used.nprobe))
            self._target = replace(self._target, parameters=replace(used, nprobe=wider))

    def closed(self) -> dict[str, Answered]:
        """Asks in each way, closed loop; by label."""
        return {way.label: self._closed(way) for way in WAYS}

    def open(self, queries_s: float) -> Answered:
        """Single queries that come due `queries_s` a second."""
        self._log(f"asking as queries come due, {queries_s:.0f} a second")
        with usage.measured(self._fleet) as used:
            asked = open_loop(self._target, self._data.queries, queries_s=queries_s, seconds=SECONDS)
        return self._summed(asked, used, SECONDS)

    def while_ingesting(self, fresh: datasets.Floats, points_s: float) -> tuple[Answered, float]:
        """64 callers beside writes of new points; also returns the points a second that were written."""
        way = next(way for way in WAYS if way.label == "64 callers")
        # A fresh point that is nearer than the k-th of the stored ones is as good an answer.
        self._stored = np.concatenate((self._data.base, fresh))
        with _ingesting(self._target, fresh, len(self._data.base), points_s) as written:
            found = self._closed(way)
        self._stored = self._data.base
        return found, written()

    def _closed(self, way: Way, seconds: float = SECONDS) -> Answered:
        self._log(f"asking: {way.callers} callers, {way.size} queries a call, through {way.through}")
        with usage.measured(self._fleet) as used:
            load = Load(way.callers, way.size, seconds, WARM_UP_S)
            asked = closed_loop(self._target, self._data.queries, load, way.through)
        return self._summed(asked, used, seconds + WARM_UP_S)

    def _summed(self, asked: Asked, used: usage.Usage, seconds: float) -> Answered:
        queries = np.fromiter(asked.rows, np.int64)
        rows = np.stack([asked.rows[query] for query in asked.rows])
        recall = scoring.recall_by_distance(
            self._stored, self._data.queries[queries], np.maximum(rows, -1), self._bounds[queries]
        )
        answered = asked.latencies.queries_s * seconds
        cpu_ms = {name: spent_s * 1e3 / answered for name, spent_s in used.cpu_s.items()}
        return Answered(**asked.latencies.as_dict(), recall=recall, cpu_ms=cpu_ms)


@contextlib.contextmanager
def _ingesting(
    target: Target, vectors: datasets.Floats, first_id: int, points_s: float
) -> Iterator[Callable[[], float]]:
    """Writes vectors at a steady rate, from a thread, until the block ends; yields what tells points a second so far."""
    stop = threading.Event()
    begin_s = time.perf_counter()
    written = 0
    ended_s = begin_s

    async def write() -> None:
        nonlocal written, ended_s
        async with vectorfleet.AsyncClient(target.address, timeout=60.0) as client:
            for first in range(0, len(vectors) - INGEST_BATCH + 1, INGEST_BATCH):
                await asyncio.sleep(max(0.0, begin_s + first / points_s - time.perf_counter()))
                if stop.is_set():
                    return
                ids = range(first_id + first, first_id + first + INGEST_BATCH)
                await client.upsert(target.collection, ids=ids, vectors=vectors[first : first + INGEST_BATCH])
                written += INGEST_BATCH
                ended_s = time.perf_counter()

    thread = threading.Thread(target=lambda: asyncio.run(write()), name="ingesting")
    thread.start()
    try:
        yield lambda: written / max(1e-9, ended_s - begin_s)
    finally:
        stop.set()
        thread.join()


def beside(data: datasets.VectorSet, parameters: bare_faiss.Parameters, log: Log) -> dict[str, Any]:
    """Measures bare FAISS on the same data. The cluster must have stopped: FAISS gets all cores."""
    with tempfile.TemporaryDirectory(prefix="vectorfleet-bench-") as scratch:
        np.save(Path(scratch) / "base.npy", data.base)
        np.save(Path(scratch) / "queries.npy", data.queries)
        bare = bare_faiss.measure(Path(scratch), parameters, log)
        rows = np.load(Path(scratch) / "rows.npy")
    bounds = scoring.nearest_distances(data.base, data.queries, K)
    return {**bare, "recall": scoring.recall_by_distance(data.base, data.queries, rows, bounds)}


def measure(
    fleet: LocalCluster, data: datasets.VectorSet, fresh: datasets.Floats | None, loaded: Loaded, log: Log
) -> Found:
    """Measures the cluster; under load too, where there are fresh vectors to write meanwhile."""
    measurement = Measurement(fleet, data, loaded, log)
    measurement.tune()
    closed = measurement.closed()
    resident_bytes = processes.resident_bytes(psutil.Process(child.pid) for child in fleet.processes.values())
    under_load = None
    if fresh is not None:
        opened = measurement.open(OPEN_LOOP_SHARE * closed["64 callers"].queries_s)
        under_load = UnderLoad(opened, *measurement.while_ingesting(fresh, INGEST_SHARE * loaded.points_s))
    return Found(measurement.parameters, closed, resident_bytes, under_load)


def record_all(
    record: Record, data: datasets.VectorSet, loaded: Loaded, found: Found, bare: dict[str, Any]
) -> None:  # fmt: skip
    """Appends all figures, a line each."""
    used = found.parameters
    about = {"data": data.name, "nlist": used.nlist, "nprobe": used.nprobe, "oversample": OVERSAMPLE}
    for way in WAYS:
        ours, theirs = found.closed[way.label], bare["ways"][way.beside]
        record.add(
            "speed", **about, way=way.label, cluster=vars(ours), faiss=theirs, faiss_recall=bare["recall"],
            ratio=ours.queries_s / theirs["queries_s"],
        )  # fmt: skip
    record.add("resident", data=data.name, resident_bytes=found.resident_bytes)
    if found.under_load is not None:
        load = found.under_load
        record.add("open loop", **about, cluster=vars(load.opened))
        record.add("while ingesting", **about, cluster=vars(load.ingesting), ingested_points_s=load.ingested_points_s)
    record.add(
        "ingest", data=data.name, acknowledged_points_s=loaded.points_s,
        indexed_points_s=len(data.base) / loaded.settled_s,
        faiss_add_points_s=bare["add_points_s"], faiss_train_s=bare["train_s"],
    )  # fmt: skip
