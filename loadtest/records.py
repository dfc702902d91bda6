"""What was measured, where and on which version: JSON lines, one a figure, appended to a file; and tables for people."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS_OF = ("faiss-cpu", "grpcio", "numpy", "protobuf", "rocksdict", "sentence-transformers", "torch")


class Record:
    """Appends measurements of one run to a file; every line says on what and with what it was measured."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._run = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **environment()}

    def add(self, measure: str, **figures: Any) -> None:
        """Appends one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"measure": measure, **figures, **self._run}, default=_plain) + "\n")


def environment() -> dict[str, Any]:
    """Says which commit, machine and versions these are."""
    return {"commit": _commit(), "machine": machine(), "python": platform.python_version(), "versions": _versions()}


def machine() -> str:
    """The processor, the cores that this process may use, and the memory."""
    model = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        lines = about.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB"


def table(title: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Renders rows as a Markdown table, columns aligned; the first row names the columns."""
    if not rows:
        return f"## {title}\n\n(nothing measured)\n"
    names = list(rows[0])
    widths = [max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join((first, *rest))} |"

    dashes = [("-" * width) if position == 0 else "-" * (width - 1) + ":" for position, width in enumerate(widths)]
    body = [line([row.get(name, "") for name in names]) for row in rows]
    return "\n".join([f"## {title}", "", line(names), line(dashes), *body, ""])


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
