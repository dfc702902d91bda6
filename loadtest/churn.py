"""Recall, tombstones and disk space while points come, go and change: streaming runbooks through a real cluster.

At each search step of a runbook the collection is asked as it stands, while sealing, training and compaction go on behind
it; beside it a fresh collection of the same live points is made, indexed, and asked the same with the same parameters. A
collection that has lived must not answer worse than one that was just built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import vectorfleet
from loadtest import datasets, loading, runbooks, scoring
from loadtest.asking import rows_of
from loadtest.quality import K
from loadtest.records import Record, table

RUNBOOK = "simple_replace_runbook"
"""Inserts, replaces and deletes, with four searches; the others take longer."""
POINTS = 20_000
QUERIES = 500
RECALL_LOST_MAX = 0.01
TOMBSTONES_MAX = 0.2
"""Compaction rewrites a segment with more; see shard_server/engine/compaction.py."""
INDEX = vectorfleet.IndexOptions(train_points=2_000)
"""Small enough that most search steps meet codes, not the exact search of an untrained collection."""


@dataclass
class Live:
    """The points that a correct store holds: point → row of the data; -1: none."""

    rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]

    def apply(self, step: runbooks.Step) -> None:
        """Follows one step."""
        match step.operation:
            case "insert" | "replace":
                self.rows[step.points.start : step.points.stop] = np.arange(step.rows.start, step.rows.stop)
            case "delete":
                self.rows[step.points.start : step.points.stop] = -1

    @property
    def points(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The live points, ascending."""
        return np.flatnonzero(self.rows >= 0)


def measure(client: vectorfleet.Client, record: Record, log: Callable[[str], None], names: Sequence[str]) -> bool:
    """Runs runbooks on MNIST; prints a table for each, and returns whether every bar was met."""
    try:
        data = datasets.mnist(points=POINTS, queries=QUERIES)
        books = {name: runbooks.read(name, POINTS) for name in names}
    except datasets.AbsentDataError as absent:
        log(f"passed over: {absent}")
        return True
    met = True
    for name, steps in books.items():
        met &= _run(client, data, name, steps, record, log)
    return met


def _run(
    client: vectorfleet.Client,
    data: datasets.VectorSet,
    book: str,
    steps: Sequence[runbooks.Step],
    record: Record,
    log: Callable[[str], None],
) -> bool:
    lived, fresh = f"{book}-lived", f"{book}-fresh"
    client.create_collection(lived, dim=data.base.shape[1], metric="l2", shards=2, index=INDEX)
    live = Live(np.full(len(data.base), -1, np.int64))
    lines, met = [], True
    for number, step in enumerate(steps, 1):
        live.apply(step)
        match step.operation:
            case "insert" | "replace":
                rows = slice(step.rows.start, step.rows.stop)
                client.upsert(lived, ids=step.points, vectors=data.base[rows], timeout=loading.CALL_TIMEOUT_S)
            case "delete":
                client.delete(lived, ids=step.points, timeout=loading.CALL_TIMEOUT_S)
            case "search":
                log(f"{book}: step {number} of {len(steps)}, {len(live.points):,} points")
                found, built, dead = _compare(client, data, live, lived, fresh)
                met &= found >= built - RECALL_LOST_MAX
                record.add(
                    "churn", data=data.name, runbook=book, step=number, recall=found, fresh=built, tombstones=dead
                )
                lines.append(
                    {
                        "step": f"{number}",
                        "points": f"{len(live.points):,}",
                        "recall@10": f"{found:.4f}",
                        "freshly built": f"{built:.4f}",
                        "tombstones": f"{dead:.1%}",
                    }
                )
    loading.settle(client, lived)
    at_rest, disk_bytes = _tombstones(client, lived)
    raw_bytes = len(live.points) * data.base.shape[1] * 4
    met &= at_rest <= TOMBSTONES_MAX
    record.add(
        "churn at rest", data=data.name, runbook=book, tombstones=at_rest, disk_bytes=disk_bytes, raw_bytes=raw_bytes
    )
    print(table(f"Churn: {book} on {data.name} (bar: {RECALL_LOST_MAX} below freshly built)", lines))
    print(
        f"At rest: {at_rest:.1%} tombstones (bar: {TOMBSTONES_MAX:.0%}), {disk_bytes / 2**20:.0f} MiB on disk for "
        f"{raw_bytes / 2**20:.0f} MiB of vectors.\n",
        flush=True,
    )
    client.delete_collection(lived)
    return met


def _compare(
    client: vectorfleet.Client, data: datasets.VectorSet, live: Live, lived: str, fresh: str
) -> tuple[float, float, float]:
    """Recall of the collection that lived, of a fresh one of the same points, and the share of tombstones."""
    points = live.points
    base = data.base[live.rows[points]]
    bounds = scoring.nearest_distances(base, data.queries, K)

    def recall(name: str) -> float:
        found = client.search(name, vectors=data.queries, k=K, min_coverage=1.0, timeout=loading.CALL_TIMEOUT_S)
        ids = rows_of(found.ids)
        rows = np.searchsorted(points, ids).clip(max=len(points) - 1)
        phantom = points[rows] != ids  # a point that is not live is no answer
        return scoring.recall_by_distance(base, data.queries, np.where(phantom, -1, rows), bounds)

    found = recall(lived)
    dead, _ = _tombstones(client, lived)
    client.create_collection(fresh, dim=base.shape[1], metric="l2", shards=2, index=INDEX)
    client.upsert(fresh, ids=points, vectors=base, timeout=loading.CALL_TIMEOUT_S)
    loading.settle(client, fresh)
    built = recall(fresh)
    client.delete_collection(fresh)
    return found, built, dead


def _tombstones(client: vectorfleet.Client, name: str) -> tuple[float, int]:
    """Dead rows as a share of all rows, and bytes on disk."""
    replicas = [one for shard in client.cluster().shards if shard.collection == name for one in shard.replicas]
    dead, points = sum(one.tombstones for one in replicas), sum(one.points for one in replicas)
    return dead / max(1, dead + points), sum(one.disk_bytes for one in replicas)
