"""`search`: vectors, texts or a file of vectors in, ranked hits out."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from vectorfleet import limits
from vectorfleet._client import Client
from vectorfleet._models import Hit, SearchResult
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import counted, printable, short_floats, shorten, show_json, show_table, warn_of_gaps
from vectorfleet.cli.readers import read_vectors


@click.command()
@click.argument("name")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A question; may be given several times.")
@click.option("--vector", "vectors", multiple=True, metavar="JSON", help="A vector: '[0.1, 0.2]'; several times.")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Vectors: .npy or .fvecs.",
)
@click.option("-k", type=click.IntRange(1), default=limits.K_DEFAULT, show_default=True, help="Hits for each query.")
@click.option("--nprobe", type=click.IntRange(0), default=0, help="Inverted lists to visit. [default: automatic]")
@click.option(
    "--oversample", type=float, default=0.0, help="Candidates compared exactly, times k. [default: 10, at least 100]"
)
@click.option("--exact", is_flag=True, help="Compare every vector: slow, and nothing is missed.")
@click.option(
    "--filter", "filter", metavar="JSON", help='Only points that pass: \'{"lang": "en", "price": {"$lt": 10}}\'.'
)
@click.option("--payload/--no-payload", "with_payload", default=True, show_default=True, help="Show payloads.")
@click.option("--with-vector", is_flag=True, help="Include vectors in --json.")
@click.option("--min-coverage", type=click.FloatRange(0, 1), default=0.0, help="Share of shards that must answer.")
@connected
def search(
    client: Client,
    name: str,
    texts: tuple[str, ...],
    vectors: tuple[str, ...],
    path: Path | None,
    filter: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the nearest points of a collection, for one or many queries."""
    if sum(map(bool, (texts, vectors, path))) != 1:
        raise click.UsageError("give one kind of query: --text, --vector or --file")
    queries: dict[str, Any] = {"texts": texts}
    if vectors:
        queries = {"vectors": [_vector(text) for text in vectors]}
    elif path is not None:
        queries = {"vectors": read_vectors(path)}
    start_s = time.perf_counter()
    found = client.search(name, **queries, filter=None if filter is None else _filter(filter), **options)
    took_ms = (time.perf_counter() - start_s) * 1000
    if as_json:
        hits = [[_hit(hit, options["with_vector"]) for hit in row] for row in found.hits]
        matching = {} if found.matching is None else {"matching": found.matching}
        show_json({"hits": hits, "coverage": asdict(found.coverage), **matching, "took_ms": round(took_ms, 3)})
    else:
        _show(found, texts, took_ms)
    warn_of_gaps(found.coverage)


def _show(found: SearchResult, texts: tuple[str, ...], took_ms: float) -> None:
    width = max(40, shutil.get_terminal_size().columns)
    for number, hits in enumerate(found.hits):
        if len(found) > 1:
            click.echo(f"query {number}" + (f": {shorten(texts[number], width - 12)}" if texts else ""))
        room = max(20, width - 18 - max((len(printable(hit.id)) for hit in hits), default=0))
        with_payload = any(hit.payload for hit in hits)
        rows = []
        for rank, hit in enumerate(hits, 1):
            payload = [shorten(_payload(hit), room)] if with_payload else []
            rows.append([rank, f"{hit.score:.6g}", hit.id, *payload])
        if rows:
            show_table(["#", "score", "id", *(["payload"] if with_payload else [])], rows)
        else:
            click.echo("nothing found")
        click.echo()
    coverage = found.coverage
    passed = "" if found.matching is None else f"{counted(found.matching, 'match', 'matches')} of the filter, "
    shards = f"{coverage.shards_answered}/{coverage.shards_total} shards"
    click.echo(f"{counted(len(found), 'query', 'queries')}, {passed}{shards}, {took_ms:.1f} ms")


def _payload(hit: Hit) -> str:
    return json.dumps(hit.payload, ensure_ascii=False) if hit.payload is not None else "-"


def _hit(hit: Hit, with_vector: bool) -> dict[str, Any]:
    (score,) = short_floats(np.asarray([hit.score], np.float32))
    told: dict[str, Any] = {"id": hit.id, "score": score, "payload": hit.payload}
    if with_vector and hit.vector is not None:
        told["vector"] = short_floats(hit.vector)
    return told


def _filter(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{shorten(text, 40)} is not JSON: {error}", param_hint="--filter") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{shorten(text, 40)} is no JSON object", param_hint="--filter")
    return content


def _vector(text: str) -> NDArray[np.float64]:
    try:
        vector = np.asarray(json.loads(text), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise click.BadParameter(
            f"{shorten(text, 40)} is no JSON list of numbers: {error}", param_hint="--vector"
        ) from error
    if vector.ndim != 1:
        raise click.BadParameter(f"{shorten(text, 40)} is not one list of numbers", param_hint="--vector")
    return vector
