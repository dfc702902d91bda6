"""Peers beside the cluster and bare FAISS, as a table for people, and the bars against the best server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from loadtest.peers.catalogue import PEERS
from loadtest.peers.measuring import WAYS, Answered, Failed, Measured
from loadtest.records import table
from loadtest.speed import WAYS as CLUSTER_WAYS
from loadtest.speed import Found, Loaded
from loadtest.speed_tables import Bar

RECALL_SHORT_MAX: Final = 0.005
"""A peer whose recall stays further below the cluster's is shown, and is not compared with."""
BARS: Final = {"64 callers": 4.0, "batches of 100": 2.0}


def bars(found: Found, outcomes: Iterable[Measured | Failed]) -> list[Bar]:
    """What the cluster answers over what the best peer server answers at the same recall, for each way that has a bar."""
    servers = [one for one in outcomes if isinstance(one, Measured) and PEERS[one.name].server]
    reached = []
    for label, bar in BARS.items():
        ours = found.closed[label]
        equal = [one for one in servers if one.ways[label].recall >= ours.recall - RECALL_SHORT_MAX]
        if equal:
            best = max(equal, key=lambda one: one.ways[label].queries_s)
            what = f"{label}: cluster ÷ best peer server at equal recall ({best.name}), queries/s"
            reached.append(Bar(what, ours.queries_s / best.ways[label].queries_s, bar))
    return reached


def show(
    name: str, loaded: Loaded, points: int, found: Found, bare: Mapping[str, Any], outcomes: Sequence[Measured | Failed]
) -> None:
    """Prints the peers' table, the cluster and FAISS first, and what each peer was and how it failed."""
    beside = {way.label: bare["ways"][way.beside] for way in CLUSTER_WAYS}
    build_points_s = points / (bare["train_s"] + points / bare["add_points_s"])
    faiss = {
        "": "bare FAISS, in-process",
        "recall@10": f"{bare['recall']:.4f}",
        **{way.label: f"{beside[way.label]['queries_s']:,.0f}" for way in WAYS},
        "p50 of one": f"{beside['one at a time']['p50_ms']:.2f}",
        "p99 of 64": "",
        "CPU ms/query, 64: client": "",
        "servers": f"{beside['64 callers']['cpu_ms']:.3f}",
        "MiB": "",
        "points/s indexed": f"{build_points_s:,.0f}",
    }
    cluster = _row(
        "vectorfleet, router and 2 shard servers", {way.label: _as_peer(found, way.label) for way in WAYS},
        points / loaded.settled_s,
    )  # fmt: skip
    measured = [one for one in outcomes if isinstance(one, Measured)]
    rows = [cluster, faiss, *(_row(PEERS[one.name].title, one.ways, one.points_s) for one in measured)]
    print(table(f"Peers on {name}, queries/s at equal recall, the same cores, in the same run", rows))
    ratios = [
        {
            "cluster ÷ peer, queries/s": PEERS[one.name].title,
            "": "server" if PEERS[one.name].server else "in-process",
            **{way.label: f"{found.closed[way.label].queries_s / one.ways[way.label].queries_s:.2f}" for way in WAYS},
            "recall": "equal" if one.tuned.reached else f"{one.tuned.recall:.4f}, not reached",
        }
        for one in measured
    ]
    print(table("The cluster beside each", ratios))
    for one in outcomes:
        print(f"- {one.name}: {one.says if isinstance(one, Measured) else f'NOT MEASURED: {one.why}'}")
    print(flush=True)


def _as_peer(found: Found, label: str) -> Answered:
    one = found.closed[label]
    cpu_ms = {"client": one.cpu_ms["client"], "servers": one.servers_cpu_ms}
    return Answered(one.queries_s, one.p50_ms, one.p95_ms, one.p99_ms, cpu_ms, found.resident_bytes, one.recall)


def _row(title: str, ways: Mapping[str, Answered], points_s: float) -> dict[str, str]:
    busy = ways["64 callers"]
    inside = not busy.cpu_ms["servers"]
    return {
        "": title,
        "recall@10": f"{ways['batches of 100'].recall:.4f}",
        **{way.label: f"{ways[way.label].queries_s:,.0f}" for way in WAYS},
        "p50 of one": f"{ways['one at a time'].p50_ms:.2f}",
        "p99 of 64": f"{busy.p99_ms:.0f}",
        "CPU ms/query, 64: client": "" if inside else f"{busy.cpu_ms['client']:.3f}",
        "servers": f"{busy.cpu_ms['client' if inside else 'servers']:.3f}",
        "MiB": f"{busy.resident_bytes / 2**20:,.0f}",
        "points/s indexed": f"{points_s:,.0f}",
    }
