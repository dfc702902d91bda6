"""Gets Debian's prometheus and promtool into `.make/prometheus`, without installing anything; also as a program.

Whoever has both in PATH uses those. Else the package is downloaded by apt (which checks Debian's signatures) and unpacked; root
is not needed, and where apt has no lists of packages it reads them into a folder of its own. Debian keeps one version of a
release at a time, so none can be pinned: at least `OLDEST` is asked for.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[2] / ".make" / "prometheus"
PROGRAMS: Final = ("prometheus", "promtool")
OLDEST: Final = (2, 42)
TIMEOUT_S: Final = 240


class NotObtainable(Exception):
    """There is no Prometheus here, and none can be had."""


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`, fetched where it is missing. Raises `NotObtainable`."""
    found = {one: shutil.which(one) for one in PROGRAMS}
    if not all(found.values()):
        found = {one: str(FOLDER / "usr" / "bin" / one) for one in PROGRAMS}
        if not all(os.access(path or "", os.X_OK) for path in found.values()):
            _fetch()
    path = found[name]
    assert path is not None
    version = version_of(path)
    if version < OLDEST:
        raise NotObtainable(f"{path} is of version {version}; at least {OLDEST} is needed")
    return path


def version_of(path: str) -> tuple[int, ...]:
    """What a program says of itself."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    match = re.search(r"version (\d+)\.(\d+)", done.stdout + done.stderr)
    if match is None:
        raise NotObtainable(f"{path} does not run: {done.stderr.strip() or done.stdout.strip()}")
    return tuple(map(int, match.groups()))


def _fetch() -> None:
    FOLDER.parent.mkdir(exist_ok=True)
    with (FOLDER.parent / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of pytest may want it at once
        if FOLDER.exists():
            return
        missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            raise NotObtainable(_advice(f"{' and '.join(missing)} are not here"))
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            package = _downloaded(Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)], Path(scratch))
            unpacked.rename(FOLDER)


def _downloaded(scratch: Path) -> Path:
    """Downloads the package; with lists of packages of our own where the machine's do not name it."""
    options = ["-o", f"Dir::Cache={scratch / 'cache'}", "-o", "APT::Sandbox::User="]
    own = [*options, "-o", f"Dir::State={scratch / 'state'}"]
    for folder in ("cache/archives/partial", "state/lists/partial"):
        (scratch / folder).mkdir(parents=True)
    try:
        _run(["apt-get", *options, "download", "prometheus"], scratch)
    except NotObtainable:
        _run(["apt-get", *own, "update"], scratch)
        _run(["apt-get", *own, "download", "prometheus"], scratch)
    (package,) = scratch.glob("prometheus_*.deb")
    return package


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise NotObtainable(_advice(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}"))


def _advice(why: str) -> str:
    return (
        f"Prometheus is needed to test alerts and dashboard, and cannot be had: {why}. Install Debian's package "
        f"prometheus, or put prometheus and promtool of {'.'.join(map(str, OLDEST))} or newer into PATH"
    )


if __name__ == "__main__":
    try:
        for each in PROGRAMS:
            print(f"{program(each)} {'.'.join(map(str, version_of(program(each))))}")
    except NotObtainable as error:
        sys.exit(str(error))
