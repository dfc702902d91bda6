"""Lines for people and for machines, and what happens where they cannot be written."""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Iterator

import pytest

from vectorfleet.telemetry.logs import KEPT_LINE_CHARS, KEPT_LINES, Logs, SeldomFrom
from vectorfleet.telemetry.work import Work


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before."""
    one = logging.getLogger()
    handlers, level, raising = list(one.handlers), one.level, logging.raiseExceptions
    yield one
    one.handlers[:] = handlers
    one.setLevel(level)
    logging.raiseExceptions = raising


def started(form: str, level: str = "info") -> tuple[Logs, io.StringIO]:
    stream = io.StringIO()
    logs = Logs(stream, form=form, level=level)
    logs.start()
    return logs, stream


def test_a_line_of_json_is_whole_whatever_it_says(root: logging.Logger) -> None:
    _, stream = started("json")
    with Work("call", "r-1"):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logging.getLogger("router.x").exception('a "message"\nwith\x1b[2J %s', "ä")
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told["level"] == "error"
    assert told["logger"] == "router.x"
    assert told["message"] == 'a "message"\nwith\x1b[2J ä'
    assert told["request_id"] == "r-1"
    assert told["time"].endswith("Z")
    assert "ValueError: two" in told["exception"]


def test_a_line_for_people_cannot_be_forged(root: logging.Logger) -> None:
    _, stream = started("human")
    with Work("call", "r-1"):
        logging.getLogger("router").warning("bad name %s", "x\n2026-01-01 INFO router: all is well\x1b[2J")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"bad name x\n2026-01-01 INFO router: all is well\x1b[2J [request r-1]")


def test_the_level_changes_while_it_runs(root: logging.Logger) -> None:
    logs, stream = started("human", level="warning")
    logging.getLogger("a").info("unseen")
    logs.set_level("debug")
    logging.getLogger("a").debug("seen")
    assert logs.level == "debug"
    assert "unseen" not in stream.getvalue()
    assert "seen" in stream.getvalue()


def test_the_last_lines_are_kept_and_no_more(root: logging.Logger) -> None:
    logs, _ = started("human")
    for number in range(KEPT_LINES + 10):
        logging.getLogger("a").info("%d %s", number, "x" * (2 * KEPT_LINE_CHARS))
    assert len(logs.recent) == KEPT_LINES
    assert " 10 x" in logs.recent[0]
    assert max(map(len, logs.recent)) == KEPT_LINE_CHARS


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_nothing(root: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    logs = Logs(FullDisk(), form="json", level="info")
    logs.start()
    logging.getLogger("a").info("one")
    logging.getLogger("a").info("two")
    assert [json.loads(line)["message"] for line in logs.recent] == ["one", "two"]
    assert capfd.readouterr().err == ""


def test_an_exporter_that_complains_of_each_batch_is_heard_seldom() -> None:
    now = [0.0]
    seldom = SeldomFrom("opentelemetry", 60.0, clock=lambda: now[0])
    record = logging.makeLogRecord({"name": "opentelemetry.exporter"})
    heard = []
    for second in range(0, 180, 10):
        now[0] = second
        heard.append(seldom.filter(record))
    assert [second * 10 for second, one in enumerate(heard) if one] == [0, 60, 120]
    assert seldom.filter(logging.makeLogRecord({"name": "opentelemetryx"}))
