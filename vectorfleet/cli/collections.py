"""`create` and `drop`: collections come and go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import click

from vectorfleet._client import Client
from vectorfleet._models import IndexKind, IndexOptions, Metric
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import counted, show_json


def collection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say what a new collection is; see `specification`."""
    options = [
        click.option(
            "--metric", type=click.Choice(get_args(Metric)), help="[default: l2; cosine with --embedding-model]"
        ),
        click.option("--shards", type=click.IntRange(0), default=0, help="Partitions. [default: one for each node]"),
        click.option(
            "--embedding-model",
            default="",
            metavar="MODEL",
            help="A sentence-transformers model, by path or name: points and queries may then be text.",
        ),
        click.option(
            "--index",
            "kind",
            type=click.Choice(get_args(IndexKind)),
            default=IndexOptions().kind,
            show_default=True,
            help="How vectors are encoded for the first pass of a search.",
        ),
        click.option(
            "--nlist", type=click.IntRange(0), default=0, help="Inverted lists. [default: about 4·√points of a shard]"
        ),
        click.option("--m", type=click.IntRange(0), default=0, help="PQ sub-quantisers. [default: dim / 2 or dim / 4]"),
        click.option(
            "--train-points", type=click.IntRange(0), default=0, help="Train at this many points. [default: 10000]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def specification(
    metric: Metric | None, shards: int, embedding_model: str, kind: IndexKind, nlist: int, m: int, train_points: int
) -> dict[str, Any]:
    """Turns the options into arguments of `Client.create_collection`."""
    index = IndexOptions(kind, nlist, m, train_points)
    return {"metric": metric, "shards": shards, "embedding_model": embedding_model, "index": index}


@click.command()
@click.argument("name")
@click.option(
    "--dim", type=click.IntRange(0), default=0, help="Components of a vector; required without --embedding-model."
)
@collection_options
@connected
def create(client: Client, name: str, dim: int, as_json: bool, **options: Any) -> None:
    """Create a collection; returns when its shards take writes."""
    made = client.create_collection(name, dim=dim, **specification(**options))
    if as_json:
        show_json(asdict(made))
    else:
        click.echo(f"created {made.name}: dimension {made.dim}, {made.metric}, {counted(made.shards, 'shard')}")


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected
def drop(client: Client, name: str, yes: bool, as_json: bool) -> None:
    """Remove a collection with all its points.

    There is no way back: a question is asked first, unless --yes is given. `delete` removes single points.
    """
    if not yes:
        points = client.count(name)
        if not sys.stdin.isatty():
            raise click.UsageError(f"this removes {name} with its {counted(points, 'point')}: add --yes to confirm")
        click.confirm(f"Remove {name} with its {counted(points, 'point')}? There is no way back.", abort=True, err=True)
    client.delete_collection(name)
    if as_json:
        show_json({"collection": name, "removed": True})
    else:
        click.echo(f"removed {name}")
