"""The speed figures as tables for people, and each bar with what was reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.records import table
from loadtest.speed import WAYS, Answered, Found, Loaded


@dataclass(frozen=True)
class Bar:
    """A ratio, and what it should be at least (or at most)."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def bars(loaded: Loaded, found: Found, bare: Mapping[str, Any]) -> list[Bar]:
    """Every ratio that has a bar."""
    closed, ways = found.closed, bare["ways"]

    def ratio(label: str) -> float:
        way = next(way for way in WAYS if way.label == label)
        return float(closed[label].queries_s / ways[way.beside]["queries_s"])

    batches = closed["batches of 100"]
    return [
        Bar("batches of 100: cluster ÷ FAISS, queries/s", ratio("batches of 100"), 0.7),
        Bar("64 callers, AsyncClient: cluster ÷ FAISS one by one on all cores", ratio("64 callers"), 0.5),
        Bar("64 callers, unary stubs: the same", ratio("64 callers, stubs"), 0.3),
        Bar("one at a time: p50 over FAISS's, ms", closed["one at a time"].p50_ms - ways["one"]["p50_ms"], 1.2, True),
        Bar("batches of 100: CPU a query, router and shards ÷ FAISS",
            batches.servers_cpu_ms / ways["batches"]["cpu_ms"], 3.0, True),
        Bar("durable ingest ÷ FAISS add, points/s", loaded.points_s / bare["add_points_s"], 0.4),
        *_while_ingesting(found),
    ]  # fmt: skip


def _while_ingesting(found: Found) -> list[Bar]:
    if found.under_load is None:
        return []
    share = found.under_load.ingesting.queries_s / found.closed["64 callers"].queries_s
    return [Bar("64 callers while ingesting ÷ without, queries/s", share, 0.6)]


def show(name: str, loaded: Loaded, points: int, found: Found, bare: Mapping[str, Any]) -> None:
    """Prints the tables of one set."""
    used = found.parameters
    print(
        table(
            f"Speed: {name}, nlist {used.nlist}, m {used.m}, nprobe {used.nprobe}, oversample {used.oversample:g}",
            [_row(name, way.label, found.closed[way.label], bare["ways"][way.beside], bare["recall"]) for way in WAYS],
        )
    )
    if found.under_load is not None:
        load = found.under_load
        rows = [
            _row(name, "half the rate of 64 callers, as queries come due (open loop)", load.opened),
            _row(name, f"64 callers, {load.ingested_points_s:,.0f} points/s written beside", load.ingesting),
        ]
        print(table("Under load", rows))
    build_points_s = points / (bare["train_s"] + points / bare["add_points_s"])
    loads = [
        ("written: durable and searchable ÷ FAISS add", loaded.points_s, bare["add_points_s"]),
        ("written, trained and indexed ÷ FAISS train and add", points / loaded.settled_s, build_points_s),
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
                for what, ours, theirs in loads
            ],
        )
    )


def show_bars(reached: Sequence[Bar]) -> None:
    """Prints each bar with what was reached."""
    print(
        table(
            "Bars",
            [
                {
                    "measure": one.what,
                    "reached": f"{one.value:.2f}",
                    "bar": f"{'≤' if one.at_most else '≥'} {one.bar:g}",
                    "": "met" if one.met else "MISSED",
                }
                for one in reached
            ],
        ),
        flush=True,
    )


def _row(
    name: str, label: str, ours: Answered, theirs: Mapping[str, float] | None = None, recall: float = 0.0
) -> dict[str, str]:
    router = sum(spent for process, spent in ours.cpu_ms.items() if process.startswith("router"))
    row = {
        name: label,
        "queries/s": f"{ours.queries_s:,.0f}",
        "p50 ms": f"{ours.p50_ms:.2f}",
        "p95": f"{ours.p95_ms:.2f}",
        "p99": f"{ours.p99_ms:.2f}",
        "recall@10": f"{ours.recall:.4f}",
        "CPU ms/query: client": f"{ours.cpu_ms['client']:.3f}",
        "router": f"{router:.3f}",
        "shards": f"{ours.servers_cpu_ms - router:.3f}",
    }
    if theirs is None:
        return row
    return {
        **row,
        "FAISS: queries/s": f"{theirs['queries_s']:,.0f}",
        "p50": f"{theirs['p50_ms']:.2f}",
        "recall": f"{recall:.4f}",
        "CPU": f"{theirs['cpu_ms']:.3f}",
        "cluster ÷ FAISS": f"{ours.queries_s / theirs['queries_s']:.2f}",
    }
