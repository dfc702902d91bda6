"""Asks PyPI whether a version in requirements.lock has a known vulnerability; run by `make lint`.

pip-audit does the asking, and passes over what its service does not know: without a network, or behind a mirror that
carries packages but no advisories, it finds "no known vulnerabilities" in nothing at all and exits with 0. So one package
that PyPI surely knows is asked about first. Without an answer the lock is *not audited*, and that is said so loudly
that nobody takes it for a clean result; it does not fail, since a checkout must be checked without a network too. Where it
must not pass unaudited, set AUDIT=required. A clean answer holds for the day and the lock.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCK: Final = ROOT / "requirements.lock"
PROBE: Final = "requests==2.31.0\n"
"""A version with published advisories: a service that finds none for it has none to tell of."""
TIMEOUT_S: Final = 300
ACCEPTED: Final[dict[str, str]] = {}
"""Advisory → why it does not concern us. Empty is best."""


def heard(report: Mapping[str, Any] | None) -> bool:
    """Whether the report on the probe comes from a service that knows of vulnerabilities."""
    return report is not None and any(one.get("vulns") for one in report["dependencies"])


def findings(report: Mapping[str, Any]) -> list[str]:
    """What the report holds against the lock, a line each."""
    return [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version yet'}"
        for one in report["dependencies"]
        for found in one.get("vulns", ())
        if found["id"] not in ACCEPTED
    ]


def passed_over(report: Mapping[str, Any]) -> list[str]:
    """The packages that the service did not know."""
    return [one["name"] for one in report["dependencies"] if "skip_reason" in one]


def ask(requirements: str) -> dict[str, Any] | None:
    """pip-audit's report on some pinned versions; None: it has none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text(requirements)
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off"]
        try:
            done = subprocess.run(
                [*command, "--format=json", f"--requirement={path}"],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            report: dict[str, Any] = json.loads(done.stdout)
        except (ValueError, subprocess.TimeoutExpired):
            return None
        return report


def main() -> int:
    """Returns the exit status: 1 for vulnerabilities, or for no answer where one is required."""
    lock = LOCK.read_text()
    stamp = Path(sys.prefix) / f".audited-{hashlib.sha256(lock.encode()).hexdigest()[:16]}-{datetime.date.today()}"
    if stamp.exists():
        return 0
    report = ask(lock) if heard(ask(PROBE)) else None
    if report is None:
        required = os.environ.get("AUDIT") == "required"
        sys.stderr.write(
            "\n************************************************************************\n"
            "* DEPENDENCIES NOT AUDITED: PyPI's advisories cannot be reached here.  *\n"
            "* This says nothing about the versions in requirements.lock. Run       *\n"
            "* `make lint` where https://pypi.org/pypi/PROJECT/VERSION/json answers.*\n"
            "************************************************************************\n\n"
        )
        return int(required)
    for name in passed_over(report):
        sys.stderr.write(f"not audited, PyPI does not know it: {name}\n")
    found = findings(report)
    for line in found:
        sys.stderr.write(f"vulnerable: {line}\n")
    if not found:
        stamp.touch()
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
