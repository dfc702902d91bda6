"""The benchmark's end of a worker: starts it, tells it what to do, and leaves nothing of it behind.

However the block ends, by Ctrl-C too, the worker's input is closed, upon which it stops its store; a busy one is told by a
signal as well. What of it still lives after a while is killed: its children were noted while it lived, since a server that was
started in the background has no parent to be found by afterwards. Should the benchmark itself be killed, the input ends all the
same.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from loadtest.peers.catalogue import Entry
from loadtest.peers.contract import Message, PeerError, encoded, outcome
from loadtest.processes import family
from loadtest.records import ROOT

IDLE_TIMEOUT_S: Final = 2.0
"""An idle worker sees at once that its input has ended, and stops its store."""
STOP_TIMEOUT_S: Final = 20.0


class Session:
    """A worker that runs."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        self._child = child
        self._log = log
        self._unread = b""

    def do(self, what: str, *, timeout_s: float, **arguments: Any) -> Message:
        """Has one thing done and returns what is answered; raises `PeerError`."""
        assert self._child.stdin is not None, "the worker's input is a pipe"
        try:
            self._child.stdin.write(encoded({"do": what, **arguments}))
            self._child.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"its worker is gone: {self._last_words()}") from None
        return outcome(self._line(what, time.monotonic() + timeout_s))

    def _line(self, what: str, deadline_s: float) -> bytes:
        assert self._child.stdout is not None, "the worker's output is a pipe"
        while b"\n" not in self._unread:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._child.stdout], [], [], left_s)[0]:
                raise PeerError(f"no answer to {what!r} in time: {self._last_words()}")
            chunk = os.read(self._child.stdout.fileno(), 1 << 16)
            if not chunk:
                raise PeerError(f"its worker ended: {self._last_words()}")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else "it said nothing"


@contextlib.contextmanager
def worker(entry: Entry, python: Path, folder: Path) -> Iterator[Session]:
    """Runs a peer's worker while the block lasts.

    Args:
        entry: the peer.
        python: the interpreter of its environment.
        folder: holds its vectors; the store's files go there too.

    Raises:
        PeerError: this machine gives no network namespace to a peer that must have one.
    """
    command = [str(python), "-m", "loadtest.peers.worker", entry.adapter, str(folder)]
    if entry.own_network:
        command = [*_own_network(), *command]
    if entry.never_root and os.geteuid() == 0:
        command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
    log = folder / "worker.log"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=_environment(folder),
            start_new_session=True,  # Ctrl-C is for the benchmark, which stops the worker in good order
        )  # fmt: skip
    try:
        yield Session(child, log)
    finally:
        _stop(child)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMP_", "VIRTUAL_ENV"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder),
        "ANONYMIZED_TELEMETRY": "False",
    }


def _own_network() -> list[str]:
    """A command that runs another where there is no network but loopback: by right of root, else in a user namespace."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    raised = [*unshare, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        tried = subprocess.run([*raised, "true"], capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        raise PeerError(f"it needs a network namespace of its own, and util-linux is absent: {error}") from None
    if tried.returncode:
        raise PeerError(
            "it binds all interfaces and needs a network namespace of its own, which this machine refuses "
            f"({tried.stderr.strip()[:120]}): allow user namespaces and install iproute2, or run the benchmark as root"
        )
    return raised


def _stop(child: subprocess.Popen[bytes]) -> None:
    living = family(child.pid)
    assert child.stdin is not None, "the worker's input is a pipe"
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(IDLE_TIMEOUT_S)
    child.terminate()  # one in the middle of a call does not see its input end; no effect on one that has gone
    _, stubborn = psutil.wait_procs(living, timeout=STOP_TIMEOUT_S)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=STOP_TIMEOUT_S)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
