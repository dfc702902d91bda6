"""Output stays valid and on its lines, whatever was stored."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from tests.unit.cli.conftest import Run
from tests.unit.client.fake import FakeCluster, Shelf, Stored, embedded
from vectorfleet.cli.output import printable, show_json, show_table
from vectorfleet.v1 import types_pb2

WILD = "a\nb\x1b[31m\x9b2J\ud800\u202e"
ESCAPED = r"a\nb\x1b[31m\x9b2J\ud800\u202e"


@pytest.mark.parametrize("text", ["", "plain", "日本\u3000語", "👩\u200d👩", "می\u200cخواهم", "a\u00a0b", r"C:\new"])
def test_text_that_is_left_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_breaks_lines_or_steers_terminals_is_escaped() -> None:
    assert printable(WILD) == ESCAPED


def test_a_table_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["id", "n"], [[WILD, 1], ["b", 20]])
    assert capsys.readouterr().out.splitlines() == [
        "ID" + " " * (len(ESCAPED) - 2) + "   N",
        ESCAPED + "   1",
        "b" + " " * (len(ESCAPED) - 1) + "  20",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": "日本 é"}, {"a": "日本 é"}),
        ({"a": WILD}, {"a": WILD}),
        ({"a": [float("inf"), {"b": float("nan")}, (1.5,)]}, {"a": [None, {"b": None}, [1.5]]}),
    ],
)
def test_json_is_valid_in_every_encoding(monkeypatch: pytest.MonkeyPatch, value: Any, told: Any, encoding: str) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    show_json(value)
    sys.stdout.flush()
    assert json.loads(out.getvalue().decode(encoding), parse_constant=pytest.fail) == told


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_stored_payloads_that_are_no_text(run: Run, fake: FakeCluster, form: list[str]) -> None:
    shelf = fake.shelves["c"] = Shelf(types_pb2.CollectionSpec(name="c", dim=8, metric=types_pb2.METRIC_L2))
    shelf.points["a\nb"] = Stored(embedded("a"), rb'{"a": "\ud800", "b": 1e999}', 1)
    for command in (["get", "c", "a\nb"], ["search", "c", "--vector", "[1,0,0,0,0,0,0,0]"]):
        shown = run(*command, *form).stdout
        assert r"\ud800" in shown
        assert r"a\nb" in shown
