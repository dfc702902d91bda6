"""Recall, tombstones and disk space while points come, go and change: streaming runbooks through a real cluster.

At each search step of a runbook the collection is asked as it stands, while sealing, training and compaction go on behind
it. It must not answer worse than a collection of the same live points that was just built and is asked the same. Since no
recall is above 1, one within the allowance of 1 is no worse than any: a fresh collection is built for the others, and for a
few steps of every runbook, spread evenly and with the last among them. Fresh ones are built beside the runbook, a few at a
time, since most of what one takes is waiting. Where a runbook has so many searches that this takes hours, one in N gets its
fresh collection: of each N that follow one another, the one that found least.

At the end, when nothing is left to seal, merge and encode, it is searched once more, and all that the replicas' folders take
of the disk, RocksDB's files included, is held against a fresh collection's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

import vectorfleet
from loadtest import datasets, loading, runbooks, scoring
from loadtest.asking import rows_of
from loadtest.quality import K
from loadtest.records import Record, table
from vectorfleet.local import LocalCluster

RUNBOOK: Final = "simple_replace_runbook"
"""Inserts, replaces and deletes, with four searches; the others take longer."""
POINTS: Final = 10_000
QUERIES: Final = 300
BUILT_AT_LEAST: Final = 4
"""Search steps of a runbook with a freshly built collection beside, whatever the recall."""
RECALL_LOST_MAX: Final = 0.01
TOMBSTONES_MAX: Final = 0.2
"""Compaction rewrites a segment with more; see shard_server/engine/compaction.py."""
DISK_MAX: Final = 1 / (1 - TOMBSTONES_MAX)
"""The replicas' folders at rest, over those of a fresh collection: what the tombstones take, and no more."""
REST_S: Final = 10.0
"""After the last work on segments, until which what is left over of the writes themselves is given back."""
BUILDERS: Final = 4
BUILT_WHERE_MISSED: Final = 3
"""Fresh collections whose mean counts where the first one says that the bar is missed: training is chance in part."""
SHARD_ARGS: Final = ("--seal-points", "500", "--seal-age-s", "1")
"""Rescaled as the runbooks are: by default, most searches would meet points that are not sealed yet, and so meet no lists."""
INDEX: Final = vectorfleet.IndexOptions(train_points=1_000)
"""Small enough that most search steps meet codes, not the exact search of an untrained collection."""

Points = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Bounds = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass
class Live:
    """The points that a correct store holds: point → row of the data; -1: none."""

    rows: Points

    def apply(self, step: runbooks.Step) -> None:
        """Follows one step."""
        match step.operation:
            case "insert" | "replace":
                self.rows[step.points.start : step.points.stop] = np.arange(step.rows.start, step.rows.stop)
            case "delete":
                self.rows[step.points.start : step.points.stop] = -1

    @property
    def points(self) -> Points:
        """The live points, ascending."""
        return np.flatnonzero(self.rows >= 0)


@dataclass(frozen=True)
class Stored:
    """What the replicas of a collection hold."""

    tombstones: float
    """Dead rows, as a share of all."""
    disk_bytes: int
    """That the replicas' folders take: segments, RocksDB's tables and logs, all."""


@dataclass(frozen=True)
class Searched:
    """One search step."""

    step: int
    points: int
    recall: float
    fresh: float | None
    """Of a collection just built; None: not built."""
    stored: Stored

    @property
    def above_all(self) -> bool:
        """Whether the bar is met whatever a fresh collection finds."""
        return self.recall >= 1.0 - RECALL_LOST_MAX

    @property
    def met(self) -> bool:
        """Whether the bar is, as far as is known: see `left`."""
        return self.fresh is None or self.recall >= self.fresh - RECALL_LOST_MAX

    @property
    def left(self) -> bool:
        """Whether nothing was compared although this alone does not say that the bar is met: a neighbour found less."""
        return self.fresh is None and not self.above_all


Build = Callable[[], "Future[float]"]


def due(waiting: list[tuple[Searched, Build]], every: int, *, last: bool) -> list[tuple[Searched, Build]]:
    """The one that is compared of `every` searches that wait for it, or at the `last` step of fewer; they wait no more."""
    if not waiting or (len(waiting) < every and not last):
        return []
    least = min(waiting, key=lambda one: one[0].recall)
    waiting.clear()
    return [least]


def built_at(searches: Sequence[int]) -> set[int]:
    """Those of the numbers of search steps at which a fresh collection is built in any case."""
    if len(searches) <= BUILT_AT_LEAST:
        return set(searches)
    return {searches[round(at)] for at in np.linspace(0, len(searches) - 1, BUILT_AT_LEAST)}


def measure(
    fleet: LocalCluster, client: vectorfleet.Client, data: datasets.VectorSet, record: Record,
    log: Callable[[str], None], names: Sequence[str], fresh_every: int = 1,
) -> bool:  # fmt: skip
    """Runs runbooks on a set; prints a table for each, and returns whether every bar was met.

    Args:
        fleet: started with `SHARD_ARGS`.
        client: of it.
        data: of as many points as the runbooks shall have.
        record: for the figures.
        log: for what goes on.
        names: of the runbooks.
        fresh_every: of how many searches that a fresh collection would have to judge one is judged: that which found least.

    Raises:
        AbsentDataError: the runbooks are not on this machine.
    """
    books = {name: runbooks.read(name, len(data.base)) for name in names}
    met = True
    for name, steps in books.items():
        met &= _Run(fleet.data, client, data, name, record, log, fresh_every).follow(steps)
    return met


def _disk_bytes(nodes: Path, uid: str) -> int:
    """The blocks that the folders of a collection's replicas take, of nodes with their folders in `nodes`."""
    taken: dict[int, int] = {}
    for replicas in nodes.glob(f"node-*/replicas/{uid}"):
        for folder, folders, files in os.walk(replicas):  # which passes over what is replaced meanwhile
            for name in folders + files:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(folder, name))
                    taken[status.st_ino] = 512 * status.st_blocks
    return sum(taken.values())


class _Run:
    """One runbook on one set."""

    def __init__(
        self,
        folder: Path,
        client: vectorfleet.Client,
        data: datasets.VectorSet,
        book: str,
        record: Record,
        log: Callable[[str], None],
        fresh_every: int,
    ) -> None:
        self._folder = folder
        self._client = client
        self._data = data
        self._book = book
        self._record = record
        self._log = log
        self._fresh_every = fresh_every
        self._live = Live(np.full(len(data.base), -1, np.int64))
        self._lived = f"{book}-lived"

    def follow(self, steps: Sequence[runbooks.Step]) -> bool:
        """Applies all steps and searches where they say; returns whether every bar was met."""
        self._create(self._lived)
        builds = built_at([number for number, step in enumerate(steps, 1) if step.operation == "search"])
        found: list[Searched] = []
        built: dict[int, Future[float]] = {}
        waiting: list[tuple[Searched, Build]] = []
        with ThreadPoolExecutor(BUILDERS) as builders:
            for number, step in enumerate(steps, 1):
                self._live.apply(step)
                if step.operation != "search":
                    self._write(step)
                elif len(self._live.points) >= K:
                    one, build = self._search(number, builders)
                    found.append(one)
                    if number in builds:
                        built[number] = build()
                    elif not one.above_all:
                        waiting.append((one, build))
                for one, build in due(waiting, self._fresh_every, last=number == len(steps)):
                    built[one.step] = build()
                self._hold(built.values())
        searched = [replace(one, fresh=built[one.step].result()) if one.step in built else one for one in found]
        for one in searched:
            self._record.add(
                "churn", data=self._data.name, runbook=self._book, step=one.step, recall=one.recall, fresh=one.fresh,
                tombstones=one.stored.tombstones,
            )  # fmt: skip
        met = self._rest(searched) and all(one.met for one in searched)
        self._client.delete_collection(self._lived)
        return met

    @staticmethod
    def _hold(building: Iterable[Future[float]]) -> None:
        """Waits while builders are behind: each holds a copy of the points."""
        waiting = [built for built in building if not built.done()]
        if len(waiting) > BUILDERS:
            waiting[0].result()

    def _write(self, step: runbooks.Step) -> None:
        if not len(step.points):  # a step of few points, rescaled
            return
        if step.operation == "delete":
            self._client.delete(self._lived, ids=step.points, timeout=loading.CALL_TIMEOUT_S)
        else:
            vectors = self._data.base[step.rows.start : step.rows.stop]
            self._client.upsert(self._lived, ids=step.points, vectors=vectors, timeout=loading.CALL_TIMEOUT_S)

    def _search(self, number: int, builders: ThreadPoolExecutor) -> tuple[Searched, Build]:
        """Searches, and says how a fresh collection of the same points is built, which comes to its recall."""
        points = self._live.points
        rows = self._live.rows[points]
        base = self._data.base[rows]
        bounds = scoring.nearest_distances(base, self._data.queries, K)
        recall = self._recall(self._lived, points, base, bounds)
        searched = Searched(number, len(points), recall, None, self._stored(self._lived))
        name = f"{self._book}-fresh-{number}"
        return searched, lambda: builders.submit(
            self._fresh_recall, name, points, self._data.base[rows], bounds, recall
        )

    def _fresh_recall(
        self, name: str, points: Points, base: datasets.Floats, bounds: Bounds, lived: float, *, keep: bool = False
    ) -> float:
        """What fresh collections of the points come to; the first of them is `name`, which stays where `keep` says so."""
        found: list[float] = []
        for number in range(BUILT_WHERE_MISSED):
            one = f"{name}-{number}" if number else name
            self._create(one)
            self._client.upsert(one, ids=points, vectors=base, timeout=loading.CALL_TIMEOUT_S)
            loading.settle(self._client, one)
            found.append(self._recall(one, points, base, bounds))
            if number or not keep:
                self._client.delete_collection(one)
            if lived >= found[0] - RECALL_LOST_MAX:
                break
        said = ", ".join(f"{one:.4f}" for one in found)
        self._log(f"{name} on {self._data.name}: {len(points):,} points, {lived:.4f}, freshly built {said}")
        return float(np.mean(found))

    def _rest(self, found: Sequence[Searched]) -> bool:
        """Waits until nothing is left to do, searches once more, prints all, and judges recall, tombstones and disk."""
        loading.settle(self._client, self._lived)
        points, beside = self._live.points, f"{self._book}-fresh"
        base = self._data.base[self._live.rows[points]]
        bounds = scoring.nearest_distances(base, self._data.queries, K)
        recall = self._recall(self._lived, points, base, bounds)
        built = self._fresh_recall(beside, points, base, bounds, recall, keep=True)
        time.sleep(REST_S)
        rest = Searched(0, len(points), recall, built, self._stored(self._lived))
        fresh = self._stored(beside)
        self._client.delete_collection(beside)
        self._record.add(
            "churn at rest", data=self._data.name, runbook=self._book, recall=rest.recall, fresh=rest.fresh,
            tombstones=rest.stored.tombstones, disk_bytes=rest.stored.disk_bytes, fresh_disk_bytes=fresh.disk_bytes,
            searches=len(found), built=sum(one.fresh is not None for one in found), left=sum(one.left for one in found),
            recall_least=min(one.recall for one in found),
            worst_below_fresh=max((one.fresh - one.recall for one in found if one.fresh is not None), default=0.0),
        )  # fmt: skip
        _show(self._book, self._data.name, found, rest, fresh)
        given_back = rest.stored.disk_bytes <= DISK_MAX * fresh.disk_bytes
        return rest.met and rest.stored.tombstones <= TOMBSTONES_MAX and given_back

    def _create(self, name: str) -> None:
        self._client.create_collection(name, dim=self._data.base.shape[1], metric="l2", shards=2, index=INDEX)

    def _recall(
        self, name: str, points: Points, base: datasets.Floats,
        bounds: Bounds,
    ) -> float:  # fmt: skip
        queries = self._data.queries
        found = self._client.search(name, vectors=queries, k=K, min_coverage=1.0, timeout=loading.CALL_TIMEOUT_S)
        ids = rows_of(found.ids)
        rows = np.searchsorted(points, ids).clip(max=len(points) - 1)
        phantom = points[rows] != ids  # a point that is not live is no answer
        return scoring.recall_by_distance(base, queries, np.where(phantom, -1, rows), bounds)

    def _stored(self, name: str) -> Stored:
        replicas = [
            one for shard in self._client.cluster().shards if shard.collection == name for one in shard.replicas
        ]
        dead, points = sum(one.tombstones for one in replicas), sum(one.points for one in replicas)
        return Stored(dead / max(1, dead + points), _disk_bytes(self._folder, self._client.get_collection(name).uid))


def _show(book: str, data: str, found: Sequence[Searched], rest: Searched, fresh: Stored) -> None:
    """Prints the steps with a fresh collection beside, since all of a long runbook are too many, and what all come to."""
    title = f"Churn: {book} on {data} (bar: {RECALL_LOST_MAX} below freshly built)"
    print(table(title, [_line(one) for one in found if one.fresh is not None]))
    recalls = [one.recall for one in found]
    rows = {
        f"recall@{K} at {len(found)} searches": f"{min(recalls):.4f} to {max(recalls):.4f}",
        "of those compared with freshly built": f"{sum(one.fresh is not None for one in found)}",
        f"above {1 - RECALL_LOST_MAX:g}, and so above any bar": f"{sum(one.above_all for one in found)}",
        "neither: in their group, one that found less was compared": f"{sum(one.left for one in found)}",
        "below the bar": f"{sum(not one.met for one in found)}",
        f"at rest: recall@{K}, freshly built": f"{rest.recall:.4f}, {rest.fresh:.4f}",
        f"at rest: tombstones (bar: {TOMBSTONES_MAX:.0%})": f"{rest.stored.tombstones:.1%}",
        "disk at the searches, at most, MiB": f"{max(one.stored.disk_bytes for one in found) / 2**20:.1f}",
        f"at rest, MiB (bar: {DISK_MAX:g} × freshly built)": f"{rest.stored.disk_bytes / 2**20:.1f}",
        "freshly built, MiB": f"{fresh.disk_bytes / 2**20:.1f}",
    }
    print(table("In all", [{"": what, book: value} for what, value in rows.items()]), flush=True)


def _line(one: Searched) -> dict[str, str]:
    assert one.fresh is not None, "only such are told"
    return {
        "step": f"{one.step}",
        "points": f"{one.points:,}",
        "recall@10": f"{one.recall:.4f}",
        "freshly built": f"{one.fresh:.4f}",
        "tombstones": f"{one.stored.tombstones:.1%}",
        "": "" if one.met else "MISSED",
    }
