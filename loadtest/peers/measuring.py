"""Measures peers one after another, beside a cluster that has been measured already; one that fails is a line, not an end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtest import datasets, scoring
from loadtest.peers import tuning
from loadtest.peers.catalogue import PEERS, Entry
from loadtest.peers.contract import K, PeerError, scratch_files
from loadtest.peers.environments import python_of
from loadtest.peers.session import Session, worker

START_TIMEOUT_S: Final = 240.0
BUILD_TIMEOUT_S: Final = 900.0
TUNING_S: Final = 1.0
SECONDS: Final = 4.0
WARM_UP_S: Final = 1.0

Log = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """One way of asking; its label is that of the same way of asking the cluster."""

    label: str
    callers: int
    size: int


WAYS: Final = (
    Way("one at a time", 1, 1),
    Way("16 callers", 16, 1),
    Way("64 callers", 64, 1),
    Way("batches of 100", 2, 100),
)


@dataclass(frozen=True)
class Answered:
    """One way's figures."""

    queries_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]
    """CPU milliseconds a query: "client", the worker; "servers", the store's own processes."""
    resident_bytes: int
    """Of the store's processes, or of the worker where the store is in it."""
    recall: float


@dataclass(frozen=True)
class Measured:
    """A peer's figures."""

    name: str
    says: str
    points_s: float
    """From the first vector until all are in the index."""
    tuned: tuning.Tuned
    ways: Mapping[str, Answered]


@dataclass(frozen=True)
class Failed:
    """A peer that could not be measured."""

    name: str
    why: str


def measure(names: Sequence[str], data: datasets.VectorSet, recall: float, log: Log) -> Iterator[Measured | Failed]:
    """Measures peers at a recall.

    Args:
        names: keys of `PEERS`.
        data: what to store and to ask.
        recall: recall@K that each is tuned to.
        log: told what goes on.
    """
    bounds = scoring.nearest_distances(data.base, data.queries, K)
    for name in names:
        try:
            with tempfile.TemporaryDirectory(prefix="vectorfleet-peer-") as scratch:
                yield _measured(name, PEERS[name], data, bounds, recall, Path(scratch), log)
        except (PeerError, OSError) as error:
            log(f"{name}: {error}")
            yield Failed(name, str(error))


def _measured(
    name: str, entry: Entry, data: datasets.VectorSet, bounds: Any, target: float, folder: Path, log: Log
) -> Measured:
    python = python_of(entry, log)
    base, queries, rows = scratch_files(folder)
    np.save(base, data.base)
    np.save(queries, data.queries)

    def recall_of_rows() -> float:
        found = np.load(rows)
        asked = np.flatnonzero(found[:, 0] != -2)
        return scoring.recall_by_distance(data.base, data.queries[asked], np.maximum(found[asked], -1), bounds[asked])

    def ask(
        session: Session, callers: int, size: int, seconds: float, warm_up_s: float
    ) -> tuple[dict[str, Any], float]:
        said = session.do(
            "ask", callers=callers, size=size, seconds=seconds, warm_up_s=warm_up_s, timeout_s=seconds + warm_up_s + 120
        )
        return dict(said), recall_of_rows()

    with worker(entry, python, folder) as session:
        log(f"{name}: starting it and loading {len(data.base):,} vectors")
        session.do("start", timeout_s=START_TIMEOUT_S)
        built = session.do("build", timeout_s=BUILD_TIMEOUT_S)
        log(f"{name}: {built['says']}; {built['points_s']:,.0f} points/s, indexed")

        def recall_of(effort: int) -> float:
            session.do("look", effort=effort, timeout_s=START_TIMEOUT_S)
            _, found = ask(session, 2, 100, TUNING_S, 0.0)
            log(f"{name}: effort {effort}: recall@{K} {found:.4f}")
            return found

        tuned = tuning.tune(recall_of, least=built["least"], most=built["most"], target=target)
        says = session.do("look", effort=tuned.effort, timeout_s=START_TIMEOUT_S)["says"]
        if not tuned.reached:
            log(f"{name}: recall {target:.4f} is out of reach; measured at {tuned.recall:.4f}")
        ways = {}
        for way in WAYS:
            log(f"{name}: asking, {way.callers} callers, {way.size} queries a call")
            figures, recall = ask(session, way.callers, way.size, SECONDS, WARM_UP_S)
            ways[way.label] = Answered(**figures, recall=recall)
            log(f"{name}: {figures['queries_s']:,.0f} queries/s, recall@{K} {recall:.4f}")
    return Measured(name, says, built["points_s"], tuned, ways)


def figures(one: Measured | Failed) -> dict[str, Any]:
    """For a line of JSON."""
    return {"peer" if field == "name" else field: value for field, value in asdict(one).items()}
