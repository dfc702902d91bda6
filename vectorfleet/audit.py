"""The audit log: one JSON object a line for each call that is to be accounted for; never what was written, asked or found.

    {"time": "2026-01-31T12:00:00.000Z", "who": "key:5f0c…", "method": "PointService/Upsert", "collection": "films",
     "code": "OK", "reason": "", "peer": "ipv4:10.0.0.7:51234", "request_id": "9f…", "ms": 4.1, "messages": 1}

`record` only puts a line into a bounded queue; a thread writes. So a slow disk holds nobody up, and a full one stops no call:
what cannot be written is dropped and counted (`dropped`), the process log says so, and the audit log itself once it can be
written again: a line with `"dropped": N`. Whoever would rather refuse calls than lose lines watches that count. The file is
opened again when it was moved away, as logrotate does; routers of one machine may share it, since each write is whole lines.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, Final

QUEUE_LINES_MAX: Final = 10_000
BATCH_LINES_MAX: Final = 500
TEXT_CHARS_MAX: Final = 256
"""Names in a line are the caller's own words: they are cut to this."""
COMPLAIN_EVERY_S: Final = 60.0
RETRY_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 5.0
STDOUT: Final = "-"

_log = logging.getLogger(__name__)


class AuditLog:
    """Writes lines to a file, or to stdout. Safe to call from any thread."""

    def __init__(self, place: str) -> None:
        """Starts to write.

        Args:
            place: a path, or "-" for stdout.

        Raises:
            OSError: the file cannot be opened.
        """
        self.dropped = 0
        """Lines that were lost since the start."""
        self._file = _File(None if place == STDOUT else Path(place))
        self._file.open()
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUE_LINES_MAX)
        self._untold = 0
        self._counting = threading.Lock()
        self._complained_s = -COMPLAIN_EVERY_S
        self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
        self._thread.start()

    def record(self, **fields: Any) -> None:
        """Puts a line into the queue; returns at once."""
        try:
            self._queue.put_nowait(_line(fields))
        except queue.Full:
            self._lose(1, "more calls come than can be written")

    def drain(self) -> None:
        """Waits until all lines so far are written or lost."""
        self._queue.join()

    def close(self) -> None:
        """Writes what is in the queue, for a few seconds at most."""
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        going_on = True
        while going_on:
            batch = [self._queue.get()]
            while len(batch) < BATCH_LINES_MAX and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            going_on = None not in batch
            lines = [line for line in batch if line is not None]
            told = self._untold
            if told:
                lines.insert(0, _line({"dropped": told}))
            left, error = self._file.write("".join(lines).encode())
            if told and left < len(lines):
                with self._counting:
                    self._untold -= told
                told = 0
            if error is not None:
                self._lose(left - bool(told), str(error))
                if going_on:
                    time.sleep(RETRY_S)  # the queue takes what comes meanwhile
            for _ in batch:
                self._queue.task_done()
        self._file.close()

    def _lose(self, lines: int, why: str) -> None:
        with self._counting:
            self.dropped += lines
            self._untold += lines
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.error("%d lines of the audit log are lost so far: %s", self.dropped, why)


class _File:
    """A file that others may move away, to which whole lines are appended."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        self._torn = False

    def open(self) -> None:
        if self._path is None:
            self._fd = os.dup(1)
        else:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Appends lines; returns how many of them were not written, and why. One that was cut is ended by the next write."""
        lines = data.count(b"\n")
        try:
            self._follow()
            if self._torn:
                data = b"\n" + data
            while data:
                written = os.write(self._fd, data)
                self._torn = not data[:written].endswith(b"\n")
                data = data[written:]
        except OSError as error:
            return min(lines, data.count(b"\n")), error
        return 0, None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _follow(self) -> None:
        if self._path is None:
            return
        try:
            there, ours = os.stat(self._path), os.fstat(self._fd)
            moved = (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            moved = True
        if moved:
            old = self._fd
            self.open()
            os.close(old)


def _line(fields: dict[str, Any]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    cut = {name: value[:TEXT_CHARS_MAX] if isinstance(value, str) else value for name, value in fields.items()}
    return json.dumps({"time": now, **cut}) + "\n"
