"""How fast the cluster answers and loads, beside bare FAISS on the same data, with the same parameters, in the same run.

Closed loop: a caller asks its next query when the last was answered; 1, 16 and 64 of them share one AsyncClient, each
query its own call; then calls of 100 queries. Client, router, shard servers and etcd share the machine's cores; FAISS
has them to itself. Recall is that of the measured answers.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vectorfleet
from loadtest import bare_faiss, datasets, loading, scoring
from loadtest.latency import Latencies
from loadtest.quality import rows_of
from loadtest.records import Record, table

K = 10
OVERSAMPLE = 10.0
SECONDS = 5.0
WARM_UP_S = 1.0
BATCH = 100
BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True)
class Loaded:
    """How the data went in."""

    points_s: float
    """Acknowledged points a second."""
    settled_s: float
    """From the first point until all is indexed."""
    parameters: bare_faiss.Parameters


def load(client: vectorfleet.Client, data: datasets.VectorSet) -> Loaded:
    """Writes a set into a collection of its name, one shard a node, and waits until it is indexed."""
    count, dim = data.base.shape
    client.create_collection(data.name, dim=dim, metric="l2")
    start_s = time.perf_counter()
    loading.load_vectors(client, data.name, data.base)
    written_s = time.perf_counter() - start_s
    codebook = loading.settle(client, data.name).codebook
    # The servers' own default, given explicitly, so that both sides visit as many lists.
    nprobe = max(1, min(codebook.nlist, max(24, round(1.25 * codebook.nlist**0.5))))
    parameters = bare_faiss.Parameters(codebook.nlist, codebook.m, nprobe, OVERSAMPLE, K)
    return Loaded(count / written_s, time.perf_counter() - start_s, parameters)


def measure(
    address: str, data: datasets.VectorSet, loaded: Loaded, log: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Asks in each way; returns figures by way: "1", "16", "64" callers, "batch"."""
    found: dict[str, dict[str, float]] = {}
    bounds = scoring.nearest_distances(data.base, data.queries, K)
    for way, callers, size in (("1", 1, 1), ("16", 16, 1), ("64", 64, 1), ("batch", BATCHES_IN_FLIGHT, BATCH)):
        log(f"asking: {callers} callers, {size} queries a call")
        latencies, answers = asyncio.run(_ask(address, data, loaded.parameters, callers, size))
        asked = np.fromiter(answers.keys(), np.int64)
        rows = np.stack([answers[query] for query in asked])
        recall = scoring.recall_by_distance(data.base, data.queries[asked], rows, bounds[asked])
        found[way] = {**latencies.as_dict(), "recall": recall}
    return found


async def _ask(
    address: str, data: datasets.VectorSet, parameters: bare_faiss.Parameters, callers: int, size: int
) -> tuple[Latencies, dict[int, NDArray[np.int64]]]:
    """Runs one closed loop; returns its latencies, and the answered rows by query."""
    taken: list[float] = []
    answers: dict[int, Any] = {}
    count = len(data.queries)
    turns: Iterator[int] = itertools.count()
    begin_s = time.perf_counter() + WARM_UP_S
    end_s = begin_s + SECONDS

    async with vectorfleet.AsyncClient(address, timeout=30.0) as client:

        async def call() -> None:
            while (start_s := time.perf_counter()) < end_s:
                first = next(turns) * size % (count - size + 1)
                found = await client.search(
                    data.name,
                    vectors=data.queries[first : first + size],
                    k=K,
                    nprobe=parameters.nprobe,
                    oversample=parameters.oversample,
                    min_coverage=1.0,
                )
                if start_s >= begin_s:
                    taken.append(time.perf_counter() - start_s)
                    for row in range(size):
                        answers.setdefault(first + row, found.ids[row])

        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(call())
    whole_s = time.perf_counter() - begin_s
    return Latencies.of(taken, whole_s, size), {query: rows_of(ids) for query, ids in answers.items()}


def compare(
    data: datasets.VectorSet,
    loaded: Loaded,
    asked: dict[str, dict[str, float]],
    record: Record,
    log: Callable[[str], None],
) -> None:
    """Measures bare FAISS on the same data and prints both. The cluster must have stopped: FAISS gets all cores."""
    with tempfile.TemporaryDirectory(prefix="vectorfleet-bench-") as scratch:
        np.save(Path(scratch) / "base.npy", data.base)
        np.save(Path(scratch) / "queries.npy", data.queries)
        bare = bare_faiss.measure(Path(scratch), loaded.parameters, log)
        rows = np.load(Path(scratch) / "rows.npy")
    bare_recall = scoring.recall_by_distance(
        data.base, data.queries, rows, scoring.nearest_distances(data.base, data.queries, K)
    )
    labels = {"1": "one at a time", "16": "16 callers", "64": "64 callers", "batch": f"batches of {BATCH}"}
    lines = []
    for way, label in labels.items():
        ours, theirs = asked[way], bare["ways"][way]
        ratio = ours["queries_s"] / theirs["queries_s"]
        record.add(
            "speed", data=data.name, way=label, cluster=ours, faiss=theirs, faiss_recall=bare_recall, ratio=ratio
        )
        lines.append(
            {
                data.name: label,
                "queries/s": f"{ours['queries_s']:,.0f}",
                "p50 ms": f"{ours['p50_ms']:.2f}",
                "p95 ms": f"{ours['p95_ms']:.2f}",
                "p99 ms": f"{ours['p99_ms']:.2f}",
                "recall@10": f"{ours['recall']:.4f}",
                "FAISS queries/s": f"{theirs['queries_s']:,.0f}",
                "FAISS p50 ms": f"{theirs['p50_ms']:.2f}",
                "FAISS recall@10": f"{bare_recall:.4f}",
                "cluster ÷ FAISS": f"{ratio:.2f}",
            }
        )
    used = loaded.parameters
    print(table(f"Speed: nlist {used.nlist}, m {used.m}, nprobe {used.nprobe}, oversample {used.oversample:g}", lines))
    build_points_s = len(data.base) / (bare["train_s"] + len(data.base) / bare["add_points_s"])
    settled_points_s = len(data.base) / loaded.settled_s
    record.add(
        "ingest", data=data.name, acknowledged_points_s=loaded.points_s, indexed_points_s=settled_points_s,
        faiss_add_points_s=bare["add_points_s"], faiss_train_s=bare["train_s"],
    )  # fmt: skip
    ingest = [
        ("written: durable and searchable ÷ FAISS add", loaded.points_s, bare["add_points_s"]),
        ("written, trained and indexed ÷ FAISS train and add", settled_points_s, build_points_s),
    ]
    print(
        table(
            "Loading",
            [
                {
                    "points/s": what,
                    "cluster": f"{ours:,.0f}",
                    "FAISS": f"{theirs:,.0f}",
                    "ratio": f"{ours / theirs:.2f}",
                }
                for what, ours, theirs in ingest
            ],
        ),
        flush=True,
    )
