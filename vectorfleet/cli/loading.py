"""`load`: a file of points into a collection, streamed, with progress, and continued where an earlier try stopped."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Final

import click

from vectorfleet._client import Client
from vectorfleet._models import Collection
from vectorfleet.cli.bookmark import Bookmark, state_folder
from vectorfleet.cli.collections import collection_options, specification
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import counted, show_json
from vectorfleet.cli.readers import open_points
from vectorfleet.cli.rows import BATCH_BYTES_MAX, Fields, FileError, PointFile, Rows
from vectorfleet.errors import InvalidRequest, NotFound, VectorfleetError

VECTORS_PER_BATCH: Final = 20_000
TEXTS_PER_BATCH: Final = 512
_WAIT_TIMEOUT_S: Final = 3600.0


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--collection", "name", required=True, metavar="NAME", help="Where the points go.")
@click.option("--create", "may_create", is_flag=True, help="Create the collection if it does not exist.")
@click.option("--id-field", default="", metavar="FIELD", help="[default: id or _id; else points are numbered]")
@click.option("--vector-field", default="", metavar="FIELD", help="[default: vector or embedding]")
@click.option(
    "--text-field", "text_fields", multiple=True, metavar="FIELD",
    help="Several are joined by a space. [default: text, where there are no vectors]",
)  # fmt: skip
@click.option(
    "--payload-field", "payload_fields", multiple=True, metavar="FIELD",
    help="Keep this field in the payload; several times. [default: all others]",
)  # fmt: skip
@click.option("--id-prefix", default="", help="Put this before each id, to keep files apart.")
@click.option("--restart", is_flag=True, help="Start over instead of continuing an earlier try.")
@click.option("--wait", is_flag=True, help="Return only when the index has settled.")
@click.option("--progress/--no-progress", default=None, help="Progress bar on stderr. [default: on a terminal]")
@collection_options
@connected
def load(
    client: Client,
    path: Path,
    name: str,
    may_create: bool,
    id_field: str,
    vector_field: str,
    text_fields: tuple[str, ...],
    payload_fields: tuple[str, ...],
    id_prefix: str,
    restart: bool,
    wait: bool,
    progress: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Load points from FILE: .fvecs, .npy, .parquet or .jsonl.

    An object under "payload" is taken as the payload itself. A load that was interrupted goes on where it stopped when
    the same command is given again.
    """
    fields = Fields(id_field, vector_field, text_fields, payload_fields, id_prefix)
    file = open_points(path, fields)
    collection = _collection(client, name, file, specification(**options) if may_create else None)
    bookmark = Bookmark(state_folder(os.environ), path, collection.uid, fields)
    first = 0 if restart else min(bookmark.rows(), file.rows)
    if first and not as_json:
        click.echo(f"going on at {file.place(first)} of {path}", err=True)
    start_s = time.monotonic()
    points = _stream(client, name, file, first, bookmark, progress)
    seconds = time.monotonic() - start_s
    if wait:
        collection = client.wait_indexed(name, timeout=_WAIT_TIMEOUT_S)
    if as_json:
        told = {"collection": name, "points": points, "first_row": first, "rows": file.rows}
        show_json({**told, "seconds": round(seconds, 3), "settled": wait})
    else:
        rate = points / seconds if seconds > 0 else 0.0
        click.echo(f"loaded {counted(points, 'point')} into {name} in {seconds:.1f} s ({rate:,.0f}/s)")


def _collection(client: Client, name: str, file: PointFile, wanted: dict[str, Any] | None) -> Collection:
    try:
        collection = client.get_collection(name)
    except NotFound:
        if wanted is None:
            raise click.ClickException(
                f"there is no collection {name}: add --create, or make it with `create`"
            ) from None
        if not file.dim and not wanted["embedding_model"]:
            raise click.UsageError(f"{file.path} holds texts: name an --embedding-model") from None
        return client.create_collection(name, dim=file.dim, **wanted)
    if file.dim and file.dim != collection.dim:
        raise FileError(
            file.path, f"its vectors are of dimension {file.dim}, but {name} is of dimension {collection.dim}"
        )
    if not file.dim and not collection.embedding_model:
        raise FileError(file.path, f"it holds texts, but {name} has no embedding model")
    return collection


def _stream(client: Client, name: str, file: PointFile, first: int, bookmark: Bookmark, progress: bool | None) -> int:
    from tqdm import tqdm  # here, since only this command has a bar

    size = max(1, min(VECTORS_PER_BATCH, BATCH_BYTES_MAX // (4 * file.dim))) if file.dim else TEXTS_PER_BATCH
    points, done, keep = 0, first, True
    hidden = None if progress is None else not progress
    try:
        with tqdm(total=file.rows, initial=first, unit="row", unit_scale=True, disable=hidden, desc=name) as bar:
            for rows in file.batches(first, size):
                _upsert(client, name, file, rows)
                points += len(rows.ids)
                bar.update(rows.after - done)
                done = rows.after
                keep = keep and _note(bookmark, done)
    except VectorfleetError as error:
        if keep and done:
            click.echo(f"{done:,} of {file.rows:,} rows are loaded; the same command goes on there", err=True)
        raise error
    except KeyboardInterrupt:
        if keep and done:
            click.echo(f"\n{done:,} of {file.rows:,} rows are loaded; the same command goes on there", err=True)
        raise
    bookmark.clear()
    return points


def _upsert(client: Client, name: str, file: PointFile, rows: Rows) -> None:
    try:
        client.upsert(name, ids=rows.ids, vectors=rows.vectors, texts=rows.texts, payloads=rows.payloads)
    except InvalidRequest as error:
        position = re.search(r"\[(\d+)\]", error.field)
        if position is None:
            raise
        raise FileError(file.path, error.message, file.place(rows.numbers[int(position[1])])) from error


def _note(bookmark: Bookmark, rows: int) -> bool:
    try:
        bookmark.write(rows)
    except OSError as error:
        click.echo(f"warning: an interrupted load would start over: {bookmark.path}: {error.strerror}", err=True)
        return False
    return True
