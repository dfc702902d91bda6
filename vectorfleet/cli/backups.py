"""`backup` and `restore`: collections to a directory or an object store, and back, with progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from vectorfleet._backups import OnProgress, TransferProgress
from vectorfleet._client import Client
from vectorfleet.cli.connection import connected_for_long
from vectorfleet.cli.output import counted, human_bytes, show_json

_progress = click.option(
    "--progress/--no-progress", default=None, help="Show a bar on stderr. [default: where that is a terminal]"
)


@click.command()
@click.argument("destination", metavar="DEST")
@click.option("--collection", "collections", multiple=True, metavar="NAME", help="Several may be named. [default: all]")
@_progress
@connected_for_long
def backup(
    client: Client,
    destination: str,
    collections: tuple[str, ...],
    progress: bool | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Back collections up to DEST: a directory, or a URL such as s3://bucket/folder.

    Shard servers write there themselves: DEST must be the same place for all of them (a directory: a shared file system,
    unless all run on one machine), below a --backup-root of each. `vectorfleet up` allows the folder `backups` in its data.

    Files that an earlier backup to the same DEST left there are not sent again; an interrupted backup goes on when the
    command is given again. Writes go on meanwhile: of each shard the backup holds a prefix of its log.
    """
    with _bar("backup", progress) as tell:
        made = client.create_backup(
            place(destination), collections=collections or None, on_progress=tell, timeout=timeout
        )
    if as_json:
        show_json(asdict(made))
        return
    reused = made.bytes - made.new_bytes
    kept = f"; {human_bytes(reused)} were there already" if reused > 0 else ""
    click.echo(
        f"backup {made.id} of {counted(len(made.collections), 'collection')} in {made.destination}: "
        f"{human_bytes(made.bytes)} in {counted(made.objects, 'file')}{kept}"
    )


@click.command()
@click.argument("source", metavar="SRC")
@click.option("--backup", default="", metavar="ID", help="Which one. [default: the newest]")
@click.option(
    "--collection", "collections", multiple=True, metavar="NAME[=NEW]",
    help="Several may be named, each with the name that it is to get. [default: all, under their own names]",
)  # fmt: skip
@_progress
@connected_for_long
def restore(
    client: Client,
    source: str,
    backup: str,
    collections: tuple[str, ...],
    progress: bool | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Restore collections from SRC, the DEST of `vectorfleet backup`.

    Shard servers read from there themselves: see `vectorfleet backup --help`. The cluster may have another number of nodes
    than the one that was backed up. Collections can be seen when all of them are there and every checksum holds; after a
    failure nothing is left of them.
    """
    renamed = dict(_renamed(one) for one in collections)
    with _bar("restore", progress) as tell:
        made = client.restore_backup(
            place(source), backup=backup, collections=renamed or None, on_progress=tell, timeout=timeout
        )
    if as_json:
        show_json(asdict(made))
    else:
        click.echo(f"restored {', '.join(made.collections)} from backup {made.id}")


def place(text: str) -> str:
    """A place as nodes on this machine understand it: a relative directory is meant from here."""
    return text if "://" in text else str(Path(text).absolute())


def _renamed(option: str) -> tuple[str, str]:
    name, equals, new = option.partition("=")
    if not name or (equals and not new):
        raise click.BadParameter(f"{option!r} is neither NAME nor NAME=NEW", param_hint="--collection")
    return name, new


@contextlib.contextmanager
def _bar(what: str, shown: bool | None) -> Iterator[OnProgress]:
    """A bar of bytes, with rate and time left, that learns its total on the way."""
    from tqdm import tqdm  # here, since only commands with a bar need it

    hidden = None if shown is None else not shown
    with tqdm(total=0, unit="B", unit_scale=True, unit_divisor=1024, disable=hidden, desc=what) as bar:

        def tell(progress: TransferProgress) -> None:
            bar.total = max(progress.bytes_total, progress.bytes_done)
            bar.set_postfix_str(f"{progress.shards_done}/{progress.shards_total} shards", refresh=False)
            bar.update(progress.bytes_done - bar.n)

        yield tell
