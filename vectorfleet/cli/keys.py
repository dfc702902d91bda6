"""`keys`: API keys are made, shown and revoked."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from vectorfleet._client import Client
from vectorfleet._keys import ApiKey
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import show_json, show_table

_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


@click.group()
def keys() -> None:
    """Make, show and revoke API keys; needs an admin's credential."""


class _Span(click.ParamType[datetime.timedelta]):
    """A length of time such as 12h, 30d or 4w."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.timedelta:
        """Reads it."""
        match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", value)
        if match is None:
            self.fail(f"{value!r} is no length of time such as 12h, 30d or 4w", param, ctx)
        return datetime.timedelta(**{_UNITS[match[2]]: int(match[1])})


@keys.command()
@click.option(
    "--scope", "scopes", multiple=True, required=True, metavar="ACTION:NAME",
    help="read, write or admin, and a collection, NAME* or *; may be given several times.",
)  # fmt: skip
@click.option("--description", default="", help="For people.")
@click.option("--expires-in", type=_Span(), metavar="SPAN", help="Such as 12h, 30d, 4w. [default: never]")
@click.option(
    "--calls-per-second", type=click.FloatRange(0), default=0.0, help="On each router. [default: the router's]"
)
@click.option("--points-per-second", type=click.FloatRange(0), default=0.0, help="Written, deleted, and queries.")
@click.option("--points-per-day", type=click.FloatRange(0), default=0.0, help="The same, over a day.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Where to write the key, for its owner's eyes alone, instead of stdout; must not exist.",
)  # fmt: skip
@connected
def create(
    client: Client,
    scopes: tuple[str, ...],
    expires_in: datetime.timedelta | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a key and show it: it cannot be shown again."""
    expire_time = None if expires_in is None else datetime.datetime.now(datetime.UTC) + expires_in
    if output is not None and (output.exists() or not output.absolute().parent.is_dir()):
        raise click.UsageError(f"{output} exists, or its folder does not: the key would be lost")
    made = client.keys.create(scopes, expire_time=expire_time, **options)
    shown = made.secret
    if output is not None:
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{made.secret}\n")
        shown = str(output)
    if as_json:
        show_json({**asdict(made.key), "output" if output is not None else "secret": shown})
    else:
        click.echo(shown)
        click.echo(f"made key {made.key.id} for {', '.join(made.key.scopes)}", err=True)


@keys.command("list")
@connected
def list_keys(client: Client, as_json: bool) -> None:
    """Show all keys, without their secrets."""
    found = client.keys.list()
    if as_json:
        show_json({"keys": [asdict(one) for one in found]})
        return
    show_table(["id", "scopes", "description", "made", "expires"], [_row(one) for one in found])


@keys.command()
@click.argument("key_id", metavar="ID")
@connected
def revoke(client: Client, key_id: str, as_json: bool) -> None:
    """Revoke a key for good."""
    client.keys.revoke(key_id)
    if as_json:
        show_json({"id": key_id, "revoked": True})
    else:
        click.echo(f"revoked {key_id}")


def _row(key: ApiKey) -> tuple[str, ...]:
    expires = "never" if key.expire_time is None else key.expire_time.isoformat(" ", "minutes")
    return (
        key.id,
        " ".join(key.scopes),
        key.description or "-",
        key.create_time.isoformat(" ", "minutes"),
        expires,
    )
