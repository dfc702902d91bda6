"""One child process: start, wait until ready, signal, stop, kill. It may be started again under the same name.

Its stderr is appended to NAME.log. Its stdout goes to NAME.out, from where the lines `ready HOST:PORT` and `metrics HOST:PORT`
are read: a file, so that nobody has to drain a pipe. Knows nothing of what the process does.

Invariant: a child lives in a session of its own (Ctrl-C in a terminal reaches the parent alone, which stops children in order)
and dies with the thread that started it, at the latest with this process. Hence `spawner`: one thread that lives as long
as the cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from vectorfleet.local.failure import LocalClusterError

_TETHER: Final = Path(__file__).with_name("tether.py")
_POLL_S: Final = 0.02
_LOG_BYTES_MAX: Final = 16 * 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024


class Child:
    """A process that can be started any number of times, one at a time.

    Args:
        name: of the process and of its log files.
        logs: the folder of log files.
        spawner: a single thread that outlives the process.
    """

    def __init__(self, name: str, logs: Path, spawner: ThreadPoolExecutor) -> None:
        self.name = name
        self.log_path: Final = logs / f"{name}.log"
        self._out_path: Final = logs / f"{name}.out"
        self._spawner = spawner
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __repr__(self) -> str:
        return f"<{self.name}: {f'pid {self.pid}' if self.pid else 'not running'}>"

    @property
    def pid(self) -> int | None:
        """The process id; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the last run ended (negative: by a signal); None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    @property
    def address(self) -> str:
        """host:port of the last run; "" until it has said so."""
        self._address = self._address or self._said("ready")
        return self._address

    @property
    def metrics_address(self) -> str:
        """host:port of the last run's metrics; "" until it has said so, and where it serves none."""
        address = self._said("metrics")
        return address if ":" in address else ""

    def _said(self, word: str) -> str:
        """The rest of the line on stdout that begins with a word; "" while it is not there, or not whole."""
        with contextlib.suppress(OSError):
            for line in self._out_path.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith(f"{word} ") and line.endswith("\n"):
                    return line.removeprefix(f"{word} ").strip()
        return ""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], address: str = "", *, niceness: int = 0
    ) -> None:
        """Starts the process; it is not ready yet.

        Args:
            command: the program and its arguments.
            environment: all its variables.
            address: host:port, where the process is not one that prints it.
            niceness: added to our own; others on this machine come before a process of more.

        Raises:
            LocalClusterError: it runs already.
        """
        if self.pid is not None:
            raise LocalClusterError(f"{self.name} runs already, as process {self.pid}")
        self._address = address
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        tethered = [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), str(niceness), *command]
        with self._out_path.open("wb") as out, self.log_path.open("ab") as log:
            self._process = self._spawner.submit(
                subprocess.Popen,
                tethered,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            ).result()

    def wait_ready(self, timeout_s: float, ready: Callable[[], bool] | None = None) -> None:
        """Waits until the process has printed its ready line, or until `ready` says so.

        Raises:
            LocalClusterError: it ended before, or took too long; the message shows the end of its log.
        """
        deadline_s = time.monotonic() + timeout_s
        is_ready = ready or (lambda: bool(self.address))
        while not is_ready():
            if self.exit_code is not None:
                raise LocalClusterError(f"{self.name} ended with exit code {self.exit_code} {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise LocalClusterError(f"{self.name} was not ready within {timeout_s:g} s {self._last_words()}")
            time.sleep(_POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing where the process does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def terminate(self) -> None:
        """Asks the process to stop; `wait_end` tells whether it did."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process would not hear of it

    def wait_end(self, grace_s: float) -> None:
        """Waits until the process has ended; kills it when the grace is over."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, grace_s))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        try:
            tail = self.log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            tail = ""
        return f"(log: {self.log_path}): {last_message(tail) or 'it said nothing'}"


def last_message(log: str) -> str:
    """The last line of a log that tells a person something; "" where there is none.

    Python ends a traceback with what happened. Go begins with it and lists its stacks behind; etcd logs it as JSON before that.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    newest = max((at for at, line in enumerate(lines) if _of_zap(line)), default=-1)
    stack = next((at for at in range(newest + 1, len(lines)) if lines[at].startswith("goroutine ")), len(lines))
    lines = lines[:stack]
    if len(lines) > 1 and lines[-1].startswith("panic: ") and _of_zap(lines[-2]):
        lines.pop()
    return _of_zap(lines[-1]) or lines[-1] if lines else ""


def _of_zap(line: str) -> str:
    """What a line of etcd's log says, as "message: error"; "" for any other."""
    if not line.startswith("{"):
        return ""
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return ": ".join(str(entry[key]) for key in ("msg", "error") if entry.get(key))
