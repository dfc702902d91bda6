"""A virtual environment for each peer, made when it is first asked for and kept for the next time.

They lie in `$XDG_CACHE_HOME/vectorfleet/peers/` (or ~/.cache): peers' dependencies contradict one another's and ours, and a
checkout that is deleted should not cost half an hour of downloads. An environment is whole when its mark holds the requirements
that it was made of; any other is made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loadtest.peers.catalogue import Entry
from loadtest.peers.contract import PeerError

INSTALL_TIMEOUT_S: Final = 1_200.0
REPORT_EVERY_S: Final = 15.0
_MARK: Final = "made-of.txt"

Log = Callable[[str], None]


def cache_folder() -> Path:
    """Where the environments lie."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vectorfleet" / "peers"


def python_of(entry: Entry, log: Log) -> Path:
    """The interpreter of a peer's environment, which is made where it is missing; raises `PeerError`."""
    folder = cache_folder() / entry.environment
    python = folder / "bin" / "python"
    made_of = "\n".join((sys.version, *entry.requirements)) + "\n"
    mark = folder / _MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == made_of and python.exists():
        return python
    log(f"making an environment for {entry.environment} in {folder}, once: {', '.join(entry.requirements)}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)], folder, log)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off", "--no-input"]
    _run([*pip, *entry.requirements], folder, log)
    mark.write_text(made_of, encoding="utf-8")
    return python


def _run(command: Sequence[str], folder: Path, log: Log) -> None:
    """Runs a command, telling now and then that it still runs."""
    output = folder.with_suffix(".log")
    start_s = time.monotonic()
    with (
        output.open("ab") as file,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as child,
    ):
        try:
            while True:
                try:
                    code = child.wait(REPORT_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    taken_s = time.monotonic() - start_s
                    if taken_s > INSTALL_TIMEOUT_S:
                        raise PeerError(f"not installed within {INSTALL_TIMEOUT_S:.0f} s; see {output}") from None
                    log(f"still installing {folder.name}: {taken_s:.0f} s, {_last_line(output)}")
        finally:
            child.kill()
    if code:
        raise PeerError(f"not installed: {_last_line(output)} (all of it: {output})")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    telling = [line for line in lines if line.startswith("ERROR")] or lines or ["nothing said"]
    return telling[-1].strip()[:160]
