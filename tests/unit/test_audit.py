"""The audit log on real files: whole lines, rotation, a disk that is full or slow."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vectorfleet import audit
from vectorfleet.audit import AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_an_object_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    log.record(who="key:1", collection="a\n\u2028\x1b[2J", method="x" * 10_000, ms=1.5)
    log.close()
    (line,) = lines(path)
    assert line["who"] == "key:1"
    assert line["collection"] == "a\n\u2028\x1b[2J"
    assert len(line["method"]) == audit.TEXT_CHARS_MAX
    assert line["time"].endswith("Z")
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == 1, "a line break within a name breaks no line"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    log.record(n=1)
    log.drain()
    path.rename(tmp_path / "audit.jsonl.1")
    log.record(n=2)
    log.close()
    assert [line["n"] for line in lines(tmp_path / "audit.jsonl.1")] == [1]
    assert [line["n"] for line in lines(path)] == [2]


def test_several_processes_may_append(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logs = [AuditLog(str(path)) for _ in range(2)]
    for number in range(500):
        logs[number % 2].record(n=number)
    for log in logs:
        log.close()
    assert sorted(line["n"] for line in lines(path)) == list(range(500))


class FullDisk:
    """`os.write` that writes `room` more bytes and then fails, until it is `mended`."""

    def __init__(self, room: int) -> None:
        self.room, self.mended, self.failed, self._write = room, False, threading.Event(), os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if self.mended:
            return self._write(fd, data)
        if not self.room:
            self.failed.set()
            raise OSError(28, "No space left on device")
        taken = self._write(fd, data[: self.room])
        self.room -= taken
        return taken


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    disk = FullDisk(room=10)
    monkeypatch.setattr(audit.os, "write", disk)
    monkeypatch.setattr(audit, "RETRY_S", 0.001)
    yield disk
    disk.mended = True


def test_a_full_disk_costs_lines_and_says_how_many(
    tmp_path: Path, full: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    log.record(n=1)
    assert full.failed.wait(20)
    log.drain()
    assert log.dropped == 1
    full.mended = True
    log.record(n=2)
    log.close()
    torn, *whole = path.read_text().splitlines()
    assert len(torn) == 10, "what was cut is a line of its own"
    told, after = map(json.loads, whole)
    assert (told["dropped"], after["n"]) == (1, 2)
    assert caplog.text.count("are lost so far") == 1


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, real = threading.Event(), os.write

    def hang(fd: int, data: bytes) -> int:
        going_on.wait(60)
        return real(fd, data)

    monkeypatch.setattr(audit, "QUEUE_LINES_MAX", 10)
    monkeypatch.setattr(audit.os, "write", hang)
    path = tmp_path / "audit.jsonl"
    log = AuditLog(str(path))
    for number in range(100):
        log.record(n=number)
    assert log.dropped >= 100 - 10 - audit.BATCH_LINES_MAX
    assert log.dropped > 0
    going_on.set()
    log.close()
    written = lines(path)
    assert sum("n" in line for line in written) + log.dropped == 100
    assert sum(line.get("dropped", 0) for line in written) <= log.dropped


def test_a_place_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AuditLog(str(tmp_path / "no" / "audit.jsonl"))
