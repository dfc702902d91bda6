"""Schedules of inserts, deletes, replacements and searches, in the format of big-ann-benchmarks' streaming track.

A runbook names points by index ranges of a data set of its own size; `read` rescales them to another size. Pure but for
reading the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from loadtest.datasets import AbsentDataError, folder

Operation = Literal["insert", "delete", "replace", "search"]


@dataclass(frozen=True)
class Step:
    """One operation. Point p holds, when it is inserted, row p of the data; a replacement gives it another row."""

    operation: Operation
    points: range = range(0)
    rows: range = range(0)
    """insert, replace: the rows of the data that the points take, one after the other."""


def read(name: str, size: int) -> list[Step]:
    """Reads `runbooks/<name>.yaml` for a data set of `size` rows, of several schedules in the file that for the largest set.

    Raises:
        AbsentDataError: the folder is not here, or holds no such runbook.
    """
    path = folder("runbooks") / f"{name}.yaml"
    if not path.is_file():
        raise AbsentDataError(f"there is no runbook {name!r}; there are {', '.join(names())}")
    books = yaml.safe_load(path.read_text(encoding="utf-8")).values()
    return rescaled(max(books, key=_points), size)


def names() -> list[str]:
    """The runbooks that are here; raises `AbsentDataError`."""
    return sorted(path.stem for path in folder("runbooks").glob("*.yaml"))


def _points(book: dict[Any, Any]) -> int:
    """How many points a parsed runbook speaks of; some name rows beyond `max_pts`, which bounds those that live at once."""
    entries = [entry for number, entry in book.items() if isinstance(number, int)]
    largest = max(int(value) for entry in entries for key, value in entry.items() if key.endswith("end"))
    return max(int(book.get("max_pts", 0)), largest)


def rescaled(book: dict[Any, Any], size: int) -> list[Step]:
    """Makes steps of a parsed runbook, with its indices scaled from its `max_pts` (or largest index) to `size`."""
    entries = [book[number] for number in sorted(key for key in book if isinstance(key, int))]
    scale = size / _points(book)

    def span(entry: dict[str, Any], prefix: str = "") -> range:
        return range(int(entry[f"{prefix}start"] * scale), int(entry[f"{prefix}end"] * scale))

    steps = []
    for entry in entries:
        match entry["operation"]:
            case "insert":
                steps.append(Step("insert", span(entry), span(entry)))
            case "delete":
                steps.append(Step("delete", span(entry)))
            case "replace":
                points, rows = span(entry, "tags_"), span(entry, "ids_")
                length = min(len(points), len(rows))  # rounding may cut them one apart
                steps.append(Step("replace", points[:length], rows[:length]))
            case "search":
                steps.append(Step("search"))
            case other:
                raise ValueError(f"a runbook has no operation {other!r}")
    return steps
