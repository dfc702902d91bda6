"""`up` without a cluster: that nobody listens to it does not end it. Whole clusters: tests/cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_it_goes_on_when_nobody_reads_its_stderr() -> None:
    program = "from vectorfleet.cli.up import _tell\ninput()\n_tell('one')\n_tell('two')\nprint('stopped cleanly')"
    running = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr is not None
    running.stderr.close()
    out, _ = running.communicate("go\n", timeout=60)
    assert (running.returncode, out) == (0, "stopped cleanly\n")
