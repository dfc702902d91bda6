"""`make bench-compare`: the last run of `make bench` beside an earlier one, figure by figure.

Runs are told apart by the time that each line of a results file carries. Ratios to bare FAISS travel between machines; rates do
not: where the two runs were made on different ones, the page says so first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtest.records import ROOT, table

RESULTS: Final = ROOT / "loadtest" / "results"
_NAMED_BY: Final = ("measure", "data", "peer", "way", "state", "parameters")
"""Fields that say what a line measured; the other numbers are what it found."""
_SETTING: Final = frozenset({"nlist", "nprobe", "oversample", "m", "points"})

Run = Sequence[Mapping[str, Any]]


def runs_of(lines: Iterable[str]) -> list[Run]:
    """The lines of a results file, a list for each run, oldest first."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.strip():
            record = json.loads(line)
            runs.setdefault(record["time"], []).append(record)
    return [runs[time] for time in sorted(runs)]


def figures_of(run: Run) -> dict[str, float]:
    """Every number that a run found, by a name that is the same in every run."""
    found: dict[str, float] = {}
    for record in run:
        name = " · ".join(str(record[field]) for field in _NAMED_BY if field in record)
        rest = {field: value for field, value in record.items() if field not in _NAMED_BY and field not in _SETTING}
        found.update((f"{name} · {path}", value) for path, value in _numbers(rest))
    return found


def compared(before: Run, after: Run) -> list[dict[str, str]]:
    """Rows of a table: each figure that both runs have."""
    old, new = figures_of(before), figures_of(after)
    return [
        {
            "figure": name,
            "before": f"{old[name]:,.4g}",
            "after": f"{value:,.4g}",
            "after ÷ before": f"{value / old[name]:.2f}" if old[name] else "",
        }
        for name, value in new.items()
        if name in old
    ]


def _numbers(fields: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            if name != "versions":
                yield from _numbers(value, f"{path}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{name}", float(value)


def main() -> None:
    """Reads two runs and prints them side by side."""
    parser = argparse.ArgumentParser(description="Put the last benchmark run beside an earlier one.")
    parser.add_argument("--after", type=Path, default=RESULTS / "local.jsonl", help="results; its last run is shown")
    parser.add_argument(
        "--before", type=Path, help="results; its last run is the earlier one (default: the run before, in --after)"
    )
    given = parser.parse_args()
    files = [path for path in (given.after, given.before) if path is not None]
    absent = [str(path) for path in files if not path.is_file()]
    if absent:
        sys.exit(f"there is no {' and no '.join(absent)}: run `make bench` first, or name the file")
    runs = runs_of(given.after.read_text(encoding="utf-8").splitlines())
    earlier = runs_of(given.before.read_text(encoding="utf-8").splitlines()) if given.before else runs[:-1]
    if not runs or not earlier:
        sys.exit(f"{files[-1]} holds no earlier run to compare with: run `make bench` again, or name one with --before")
    before, after = earlier[-1], runs[-1]
    for title, run in (("before", before), ("after", after)):
        print(f"{title}: {run[0]['time']}, commit {run[0]['commit']}, {run[0]['machine']}")
    if before[0]["machine"] != after[0]["machine"]:
        print("DIFFERENT MACHINES: only ratios to FAISS, recall and bytes can be compared")
    print()
    print(table("Two runs", compared(before, after)))


if __name__ == "__main__":
    main()
