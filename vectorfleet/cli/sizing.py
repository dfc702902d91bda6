"""`sizing`: how many nodes, how much memory and disk, and what they are spent on; writes the overlay's numbers too."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from vectorfleet import limits
from vectorfleet.cli.connection import as_json
from vectorfleet.cli.output import counted, human_bytes, show_json, show_table
from vectorfleet.sizing import Demand, Item, Machine, Plan, SizingError, plan
from vectorfleet.sizing_overlay import ForeignFileError, write_overlay

LIST_POINTS_LONG = 5_000
"""Points a list above which a search spends its time in few, long lists."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


class _Size(click.ParamType[int]):
    """64GiB, 500G, 1.5TiB, 1073741824."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Reads bytes."""
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].lower() not in _UNITS:
            self.fail(f"{value!r} is no size: write 64GiB, 500G or a number of bytes", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].lower()])


class _Count(click.ParamType[int]):
    """1e9, 1_000_000, 1000000: a whole number."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Reads a whole number."""
        try:
            number = float(str(value).replace(",", ""))
        except ValueError:
            number = 0.5
        if not number.is_integer():
            self.fail(f"{value!r} is no whole number: write 1000000 or 1e6", param, ctx)
        return int(number)


@click.command()
@click.option("--points", type=_Count(), required=True, help="How many points; 1e9 is understood.")
@click.option("--dim", type=int, required=True, help="Components of a vector.")
@click.option("--replicas", type=int, default=1, show_default=True, help="Copies of each shard.")
@click.option("--cosine", is_flag=True, help="The collection's metric is cosine.")
@click.option("--m", type=int, default=0, help="PQ sub-quantisers.  [default: half of the dimensions]")
@click.option("--nlist", type=int, default=0, help="Inverted lists.  [default: as the cluster chooses]")
@click.option("--shards", type=int, default=0, help="Shards of the collection.  [default: one for each node]")
@click.option("--id-bytes", type=int, default=16, show_default=True, help="Of an id, on average.")
@click.option("--payload-bytes", type=int, default=256, show_default=True, help="Of a payload's JSON, on average.")
@click.option("--payload-values", type=int, default=4, show_default=True, help="Of a payload, on average.")
@click.option(
    "--cached", type=float, default=0.1, show_default=True, help="Part of the raw vectors to keep in memory, 0 to 1."
)
@click.option("--node-memory", type=_Size(), default="64GiB", show_default=True, help="Memory of one machine.")
@click.option("--node-disk", type=_Size(), default="2TiB", show_default=True, help="The largest volume of one node.")
@click.option("--node-cores", type=click.IntRange(1), default=16, show_default=True, help="Cores for one node.")
@click.option(
    "--write",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write the numbers as a Kustomize component into this folder, as k8s/overlays/prod/sizing.",
)
@as_json
@click.pass_context
def sizing(
    ctx: click.Context,
    /,
    node_memory: int,
    node_disk: int,
    node_cores: int,
    write: Path | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Say how many nodes a collection needs, with how much memory and disk.

    Counted from the layout of the data and the ceilings that the servers keep to.
    """
    machine = Machine(node_memory, node_disk, node_cores)
    try:
        found = plan(Demand(**wanted), machine)
        if write is not None:
            path = write_overlay(write, found, _command(ctx))
            click.echo(f"wrote {path}", err=True)
    except (SizingError, ForeignFileError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        show_json(_as_json(found))
    else:
        _show(found)
    for warning in _warnings(found):
        click.echo(f"warning: {warning}", err=True)


def _command(ctx: click.Context) -> str:
    """The command line that repeats this one: every option that was given, less --write and --json."""
    given = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if name in ("write", "as_json") or ctx.get_parameter_source(name) != click.core.ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[name]
        if isinstance(parameter.type, _Size) and value % 2**20 == 0:
            value = f"{value // 2**30}GiB" if value % 2**30 == 0 else f"{value // 2**20}MiB"
        given.append(parameter.opts[0] if value is True else f"{parameter.opts[0]} {value}")
    return " ".join(["vectorfleet sizing", *given])


def _as_json(found: Plan) -> dict[str, Any]:
    return {
        **asdict(found),
        "shape": found.shape._asdict(),
        "memory_bytes": found.memory_bytes,
        "volume_bytes": found.volume_bytes,
        "index_bytes_a_vector": found.index_bytes_a_vector,
        "query": {
            "scanned_codes": found.scanned_codes,
            "scanned_bytes": found.scanned_bytes,
            "compared_rows": found.compared_rows,
            "core_seconds": found.core_seconds,
        },
        "alternatives": [
            {
                "change": change,
                "nodes": other.nodes,
                "memory_bytes": other.memory_bytes,
                "volume_bytes": other.volume_bytes,
            }
            for change, other in _alternatives(found)
        ],
        "warnings": _warnings(found),
    }


def _show(found: Plan) -> None:
    demand = found.demand
    click.echo(
        f"{counted(demand.points, 'point')} of {counted(demand.dim, 'dimension')}, "
        f"{counted(demand.replicas, 'copy', 'copies')}: {counted(found.nodes, 'node')} with {human_bytes(found.memory_bytes)} "
        f"of memory, a volume of {human_bytes(found.volume_bytes)} and {counted(found.machine.cores, 'core')} each"
    )
    click.echo(
        f"{counted(found.shards, 'shard')}; {counted(found.shape.nlist, 'list')}, m {found.shape.m}; "
        f"the index costs {found.index_bytes_a_vector:.1f} resident bytes a vector"
    )
    copies = demand.points * demand.replicas / found.nodes
    for title, items in (("memory", found.memory), ("disk", found.disk)):
        total = sum(item.bytes for item in items)
        click.echo()
        rows = [
            (item.name, human_bytes(item.bytes), _a_point(item, copies), f"{item.bytes / total:.0%}") for item in items
        ]
        show_table([f"{title} of a node", "size", "bytes a vector", "share"], rows)
    click.echo()
    click.echo(
        f"a query with default parameters scans {found.scanned_codes:,} codes ({human_bytes(found.scanned_bytes)}, about "
        f"{found.core_seconds * 1000:,.1f} ms of one core) and compares {found.compared_rows:,} raw vectors"
    )
    click.echo()
    plans = [("as asked for", found), *_alternatives(found)]
    costs = [(what, one.nodes, human_bytes(one.memory_bytes), human_bytes(one.volume_bytes)) for what, one in plans]
    show_table(["what would change it", "nodes", "memory each", "volume each"], costs)


def _a_point(item: Item, copies: float) -> str:
    return f"{item.bytes / copies:,.1f}" if item.grows else "-"


def _alternatives(found: Plan) -> list[tuple[str, Plan]]:
    """The same with one thing changed: what each of them costs."""
    demand, machine = found.demand, found.machine
    changes = [
        ("--cached 0: all raw vectors on disk", replace(demand, cached=0.0), machine),
        ("--cached 1: all raw vectors in memory", replace(demand, cached=1.0), machine),
        (f"--m {found.shape.m // 2}: codes half as long", replace(demand, m=found.shape.m // 2), machine),
        ("--replicas 1", replace(demand, replicas=1), machine),
        ("no payloads", replace(demand, payload_bytes=0, payload_values=0), machine),
        ("machines with twice the memory", demand, replace(machine, memory_bytes=2 * machine.memory_bytes)),
    ]
    plans = []
    for change, other, on in changes:
        if (other, on) == (demand, machine) or (other.m == 0 and demand.m != 0):
            continue
        try:
            plans.append((change, plan(other, on)))
        except SizingError:
            continue  # it would not fit: no alternative
    return plans


def _warnings(found: Plan) -> list[str]:
    demand, lists = found.demand, found.shape.nlist
    warnings = []
    if demand.replicas > limits.REPLICAS_MAX:
        warnings.append(
            f"this release keeps {limits.REPLICAS_MAX} of each shard and refuses more: {demand.replicas} are counted for a "
            "later one"
        )
    if not demand.nlist and lists < found.lists_wanted and demand.points > LIST_POINTS_LONG * lists:
        warnings.append(
            f"a training's sample allows {lists:,} lists where {found.lists_wanted:,} would suit: lists are long, and queries "
            "scan more; a smaller dimension, or --nlist at the creation of the collection, shortens them"
        )
    return warnings
