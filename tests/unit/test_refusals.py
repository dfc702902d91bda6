"""Who was turned away stands in both logs; a flood of them is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vectorfleet.refusals import KINDS_MAX, LINES_PER_S_MAX, Rate, Refusals


def test_a_flood_is_counted_by_what_it_is() -> None:
    rate = Rate(2)
    assert [rate.take("a", 1.0), rate.take("b", 1.1), rate.take("a", 1.2), rate.take("a", 1.9)] == [
        [("a", 1)], [("b", 1)], [], [],
    ]  # fmt: skip
    assert rate.take("c", 2.0) == [("a", 2), ("c", 1)]
    assert rate.take("c", 9.0) == [("c", 1)]


def test_what_is_counted_is_bounded() -> None:
    rate = Rate(0)
    for number in range(2 * KINDS_MAX):
        rate.take(str(number), 1.0)
    assert len(rate.take("last", 2.0)) == KINDS_MAX


def told(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_both_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 5.5)
    refusals = Refusals()
    refusals.handshake("before there is an audit log")
    refusals.open(str(tmp_path / "audit.jsonl"))
    for _ in range(LINES_PER_S_MAX):
        refusals.handshake("no certificate was shown")
    refusals.caller("/a.B/C", "spiffe://vectorfleet/client/x", "ipv4:127.0.0.1:5")
    refusals.caller("/a.B/C", "", "ipv4:127.0.0.1:5")
    monkeypatch.setattr("time.monotonic", lambda: 6.5)
    refusals.handshake("no certificate was shown")
    refusals.close()
    once = {
        "who": "",
        "method": "TLS handshake",
        "code": "UNAUTHENTICATED",
        "reason": "no certificate was shown",
        "calls": 1,
    }
    denied = {
        "who": "spiffe://vectorfleet/client/x",
        "method": "a.B/C",
        "code": "PERMISSION_DENIED",
        "reason": "NOT_A_MEMBER",
    }
    assert told(tmp_path / "audit.jsonl") == [
        *[once] * (LINES_PER_S_MAX - 1),
        {**denied, "calls": 1, "peer": "ipv4:127.0.0.1:5"},
        {**denied, "who": "", "calls": 1, "peer": "ipv4:127.0.0.1:5"},
        *[once] * 2,
    ]
    assert "refused: spiffe://vectorfleet/client/x called /a.B/C" in caplog.text
    assert "refused: nobody known called /a.B/C" in caplog.text


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    refusals = Refusals()
    with pytest.raises(OSError, match="directory"):
        refusals.open(str(tmp_path))
    refusals.open("")
    refusals.close()
