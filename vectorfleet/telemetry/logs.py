"""Logs of a server process: for people or as JSON, with the request that a line belongs to, and the last of them kept for a
bug report.

Whatever a message holds, a record is one line of JSON; for people, it begins with one, and what would steer a terminal is
escaped. A log that cannot be written (a full disk, a reader that went away) stops nothing.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any, Final

from vectorfleet.telemetry import work

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("human", "json")
KEPT_LINES: Final = 2_000
KEPT_LINE_CHARS: Final = 4_000
_EXPORTER_PAUSE_S: Final = 60.0
_NAMED: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Logs:
    """The process's logging, once `start` was called."""

    def __init__(self, stream: IO[str], *, form: str, level: str) -> None:
        """Takes over nothing yet.

        Args:
            stream: where lines go.
            form: one of `FORMATS`.
            level: one of `LEVELS`.
        """
        self._level = level
        formatter = JsonFormatter() if form == "json" else HumanFormatter()
        self._written = logging.StreamHandler(stream)
        self._kept = _KeptLines()
        for handler in (self._written, self._kept):
            handler.setFormatter(formatter)
            handler.addFilter(_with_request)
            handler.addFilter(SeldomFrom("opentelemetry", _EXPORTER_PAUSE_S))

    def start(self) -> None:
        """Becomes what all loggers of the process write to."""
        logging.raiseExceptions = (
            False  # a line that cannot be written must not lead to a traceback that cannot be either
        )
        root = logging.getLogger()
        for handler in (self._written, self._kept):
            root.addHandler(handler)
        root.setLevel(self._level.upper())

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return self._level

    def set_level(self, level: str) -> None:
        """Changes it, for all that is logged from now on."""
        assert level in LEVELS
        self._level = level
        logging.getLogger().setLevel(level.upper())

    @property
    def recent(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._kept.lines)


class HumanFormatter(logging.Formatter):
    """A line for people; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__(_NAMED)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Renders the line."""
        line = super().formatMessage(record)
        if slow_query := getattr(record, "slow_query", None):
            line += f" {json.dumps(slow_query)}"
        elif request_id := getattr(record, "request_id", ""):
            line += f" [request {request_id}]"
        return _one_line(line)


class JsonFormatter(logging.Formatter):
    """A JSON object a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Renders the record."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told: dict[str, Any] = {
            "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "trace_id", "slow_query"):
            if value := getattr(record, name, None):
                told[name] = value
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class _KeptLines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record)[:KEPT_LINE_CHARS])


class SeldomFrom(logging.Filter):
    """Lets one record of a logger's family pass in a while: an exporter says of each batch that its collector is away."""

    def __init__(self, family: str, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._family = family
        self._pause_s = pause_s
        self._clock = clock
        self._next_s = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Decides about a record."""
        if record.name != self._family and not record.name.startswith(f"{self._family}."):
            return True
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._pause_s
        return True


def _with_request(record: logging.LogRecord) -> bool:
    served = work.current_or_none()
    if served is not None and not hasattr(record, "request_id"):
        record.request_id = served.request_id
        if served.span is not None:
            record.trace_id = served.span.trace_id
    return True


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
