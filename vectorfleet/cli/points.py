"""`get`, `delete` and `count`: points by id, and how many there are."""

from __future__ import annotations

import json

import click

from vectorfleet._client import Client
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import counted, short_floats, show_json, show_table


@click.command()
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--with-vector", is_flag=True, help="Show vectors, too.")
@connected
def get(client: Client, name: str, ids: tuple[str, ...], with_vector: bool, as_json: bool) -> None:
    """Show points by id; ids that do not exist are left out.

    Exit code 1 when none of them exists.
    """
    points = client.get(name, ids=ids, with_vector=with_vector)
    told = [
        {
            "id": point.id,
            "version": point.version,
            "payload": point.payload,
            **({"vector": short_floats(point.vector)} if point.vector is not None else {}),
        }
        for point in points
    ]
    if as_json:
        show_json({"points": told})
    elif told:
        headers = ["id", "version", "payload", *(["vector"] if with_vector else [])]
        show_table(headers, [[_text(one[header]) for header in headers] for one in told])
    if not points:
        raise click.ClickException(f"none of these ids exists in {name}")


@click.command()
@click.argument("name")
@click.argument("ids", nargs=-1, metavar="ID...")
@connected
def delete(client: Client, name: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Delete points by id; ids that do not exist are passed over.

    `drop` removes a whole collection.
    """
    if not ids:  # a variable of a script may be empty: that must never mean all
        raise click.UsageError("name at least one id; `drop` removes a whole collection")
    deleted = client.delete(name, ids=ids).deleted
    if as_json:
        show_json({"deleted": deleted})
    else:
        click.echo(f"deleted {counted(deleted, 'point')} of {name}")


@click.command()
@click.argument("name")
@connected
def count(client: Client, name: str, as_json: bool) -> None:
    """Count the points of a collection, exactly."""
    points = client.count(name)
    if as_json:
        show_json({"points": points})
    else:
        click.echo(str(points))


def _text(value: object) -> object:
    if value is None:
        return "-"
    return value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
