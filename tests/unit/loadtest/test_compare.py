"""Two benchmark runs side by side: the same figures meet, whatever else the files hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from loadtest import compare
from loadtest.records import Record


def line(time: str, rate: float, way: str = "64 callers", **rest: object) -> str:
    return json.dumps(
        {"measure": "speed", "way": way, "nlist": 64, "cluster": {"queries_s": rate}, "time": time, **rest}
    )


def test_runs_are_told_apart_by_their_time() -> None:
    runs = compare.runs_of([line("2", 20), "", line("1", 10), line("2", 5, "one at a time")])
    assert [[one["cluster"]["queries_s"] for one in run] for run in runs] == [[10], [20, 5]]


def test_figures_that_both_runs_have_are_compared() -> None:
    before, after = compare.runs_of(
        [line("1", 10, gone=1), line("2", 25, versions={"numpy": 2}), line("2", 7, "a new way")]
    )
    assert compare.compared(before, after) == [
        {"figure": "speed · 64 callers · cluster queries_s", "before": "10", "after": "25", "after ÷ before": "2.50"}
    ]


def test_the_last_two_runs_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["compare", "--after", str(file)])
    with pytest.raises(SystemExit, match="make bench"):
        compare.main()
    Record(file).add("memory", data="d", counted_bytes_a_vector=44.0)
    with pytest.raises(SystemExit, match="no earlier run"):
        compare.main()
    first = file.read_text()
    file.write_text(first.replace("44.0", "22.0").replace('"time": "2', '"time": "1') + first)
    compare.main()
    shown = capsys.readouterr().out
    assert "memory · d · counted_bytes_a_vector |     22 |    44 |           2.00" in shown
    assert "DIFFERENT MACHINES" not in shown
