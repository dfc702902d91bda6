"""`status --watch`: the cluster as it stands, again and again, with rates from one look to the next.

On a terminal it draws in place, cut to its size; elsewhere it prints one look behind another. A router that does not answer is
said so above the last look, and asked again.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import click

from vectorfleet._client import Client
from vectorfleet._models import ClusterInfo, Collection
from vectorfleet.cli.output import cut, human_bytes, printable, table
from vectorfleet.errors import NotFound, VectorfleetError

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END: Final = "\x1b[J"
LOOK_TIMEOUT_S: Final = 3.0
"""A call of a look takes no longer: a view that stands still is no view."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at_s: float
    info: ClusterInfo
    collections: Sequence[Collection]

    def writes(self) -> dict[str, int]:
        """Points written since the beginning, by collection: the primaries' counts."""
        total: dict[str, int] = {}
        for shard in self.info.shards:
            for replica in shard.replicas:
                if replica.primary:
                    total[shard.collection] = total.get(shard.collection, 0) + replica.applied_seqno
        return total


def look(client: Client, now_s: float) -> Look:
    """Looks once. Raises `VectorfleetError`."""
    collections = []
    for one in client.list_collections(timeout=LOOK_TIMEOUT_S):
        with contextlib.suppress(NotFound):  # it was removed between the two calls
            collections.append(client.get_collection(one.name, timeout=LOOK_TIMEOUT_S))
    return Look(now_s, client.cluster(timeout=LOOK_TIMEOUT_S), collections)


def watch(client: Client, interval_s: float) -> None:
    """Shows the cluster until Ctrl-C."""
    before: Look | None = None
    newest: Look | None = None
    away_since_s: float | None = None
    with _screen() as show, contextlib.suppress(KeyboardInterrupt):
        while True:
            trouble = ""
            started_s = time.monotonic()
            try:
                seen = look(client, started_s)
            except VectorfleetError as error:
                away_since_s = started_s if away_since_s is None else away_since_s
                trouble = f"ROUTER UNREACHABLE for {started_s - away_since_s:.0f} s: {error.message}"
            else:
                before, newest, away_since_s = newest, seen, None
            show([*([trouble] if trouble else []), *(lines_of(newest, before) if newest is not None else [])])
            time.sleep(max(0.0, interval_s - (time.monotonic() - started_s)))


def lines_of(now: Look, before: Look | None) -> list[str]:
    """Writes a look; rates are from the one before."""
    info = now.info
    etcd = "connected" if info.coordinator_connected else "NOT REACHABLE (the last known map)"
    lines = [f"{time.strftime('%H:%M:%S')}  etcd {etcd}, epoch {info.epoch}, controller {info.controller or 'none'}"]
    lines += ["", *warnings_of(info)]
    if lines[-1]:
        lines.append("")
    nodes = [
        (node.id, node.live, node.replicas, human_bytes(node.resident_bytes), human_bytes(node.disk_free_bytes))
        for node in info.nodes
    ]
    lines += table(["node", "live", "replicas", "resident", "disk free"], nodes)
    rates = rates_of(now, before)
    collections = []
    for one in now.collections:
        progress = one.progress
        told = (progress.points, progress.indexed_points, progress.buffered_points) if progress else ("-", "-", "-")
        state = "settled" if progress and progress.settled else "indexing"
        collections.append((one.name, one.shards, *told, rates.get(one.name, "-"), state))
    headers = ["collection", "shards", "points", "indexed", "buffered", "written/s", "state"]
    lines += ["", *(table(headers, collections) if collections else ["no collections"])]
    replicas = [
        (
            f"{shard.collection}/{shard.shard}",
            replica.node,
            replica.status,
            replica.points,
            replica.segments,
            replica.tombstones,
            human_bytes(replica.disk_bytes),
        )
        for shard in info.shards
        for replica in shard.replicas
    ]
    if replicas:
        lines += ["", *table(["shard", "node", "status", "points", "segments", "tombstones", "disk"], replicas)]
    return lines


def rates_of(now: Look, before: Look | None) -> dict[str, str]:
    """Points written in a second, by collection; of those that both looks know."""
    if before is None or now.at_s <= before.at_s:
        return {}
    earlier, took_s = before.writes(), now.at_s - before.at_s
    # A shard whose node is away has no count: what looks like less is not known.
    return {
        name: f"{(count - earlier[name]) / took_s:,.0f}"
        for name, count in now.writes().items()
        if name in earlier and count >= earlier[name]
    }


def warnings_of(info: ClusterInfo) -> list[str]:
    """What an operator should look at."""
    told = [f"WARNING {node.id} does not answer, or its lease has lapsed" for node in info.nodes if not node.live]
    told += [
        f"WARNING {node.id} holds replicas of {', '.join(node.unknown_collections)}, which the shard map does not know"
        for node in info.nodes
        if node.unknown_collections
    ]
    return told + [
        f"WARNING {shard.collection}/{shard.shard} on {replica.node}: {replica.message}"
        for shard in info.shards
        for replica in shard.replicas
        if replica.message
    ]


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """How looks are shown: in place on a terminal, which is given back as it was; else one behind another."""
    terminal = sys.stdout
    if not terminal.isatty():
        yield _print
        return
    terminal.write(_ENTER)
    try:
        yield partial(_draw, write=terminal.write, flush=terminal.flush)
    finally:
        terminal.write(_LEAVE)
        terminal.flush()


def _print(lines: Sequence[str]) -> None:
    for line in [*lines, ""]:
        click.echo(printable(line))


def _draw(lines: Sequence[str], write: Callable[[str], object], flush: Callable[[], object]) -> None:
    width, height = shutil.get_terminal_size()
    shown = [cut(printable(line), width) for line in lines]
    if len(shown) > height:
        shown = [*shown[: height - 1], cut(f"… {len(shown) - height + 1} more lines", width)]
    write(_HOME + "\r\n".join(line + _TO_END_OF_LINE for line in shown) + _TO_END)
    flush()
