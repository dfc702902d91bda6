"""What commands print: aligned tables for people, one JSON document for programs. stdout carries results alone."""

from __future__ import annotations

import datetime
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from vectorfleet._models import Coverage

_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS: Final = "\u200c\u200d"
"""Some scripts and many emoji need them."""


def show_json(value: Any) -> None:
    """Prints one JSON document: whatever was stored, it is valid, and in the encoding of stdout."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=_plain)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text)


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table: numbers to the right, everything else to the left."""
    for line in table(headers, rows):
        click.echo(line)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Writes a table: the lines that `show_table` prints."""
    body = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in body]
    right = [bool(body) and all(isinstance(row[at], int | float) for row in body) for at in range(len(headers))]
    widths = [max(_width(line[at]) for line in [list(headers), *cells]) for at in range(len(headers))]
    lines = []
    for line in [[header.upper() for header in headers], *cells]:
        padded = [
            " " * (width - _width(cell)) + cell if to_right else cell + " " * (width - _width(cell))
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """Cuts a line to so many columns of a terminal."""
    if _width(text) <= width:
        return text
    kept = columns = 0
    for one in text:
        columns += _width(one)
        if columns >= width:
            break
        kept += 1
    return text[:kept] + "…"


def warn_of_gaps(coverage: Coverage | None) -> None:
    """Says on stderr which shards did not answer."""
    if coverage is None or coverage.complete:
        return
    gaps = "; ".join(f"shard {gap.shard}: {gap.reason} {gap.message}".strip() for gap in coverage.missing)
    click.echo(
        f"warning: {coverage.shards_answered} of {coverage.shards_total} shards answered ({gaps or 'no reason given'})",
        err=True,
    )


def printable(text: str) -> str:
    """Writes as escapes what would break a line, steer a terminal or not encode."""
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in _UNPRINTABLE and one not in _JOINERS
        else one
        for one in text
    )


def shorten(text: str, width: int) -> str:
    """Cuts a text to a width, on one line."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"


def short_floats(values: NDArray[np.float32]) -> list[float]:
    """The same float32 numbers, written with as few digits as tell them apart."""
    return [float(str(value)) for value in values]


def counted(count: int, one: str, many: str = "") -> str:
    """1, "point" → 1 point; 2, "query", "queries" → 2 queries."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def human_bytes(count: int) -> str:
    """1536 → 1.5 KiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return short_floats(value) if value.dtype == np.float32 else value.tolist()
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON value")
