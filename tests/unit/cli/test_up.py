"""`up` without a cluster: that nobody listens to it does not end it. Whole clusters: tests/cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vectorfleet.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "192.0.2.1"], "--secure for TLS, or --insecure"),
        (["--secure", "--insecure"], "contradict each other"),
    ],
)
def test_the_clear_beyond_this_machine_must_be_asked_for(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["up", "--data", str(tmp_path / "data"), *arguments])
    assert done.exit_code == 2
    assert complaint in done.output
    assert not (tmp_path / "data").exists()


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
