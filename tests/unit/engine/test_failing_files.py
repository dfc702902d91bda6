"""Every file operation of a replica's life fails once: RocksDB's, FAISS's and ours; see `failing_workload`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import faults

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("mode", ["full", "short-once", "broken-once"])
def test_whichever_operation_fails_nothing_is_lost_and_writes_come_back(tmp_path: Path, mode: str) -> None:
    environment = os.environ | {
        "LD_PRELOAD": str(faults.built_in(tmp_path)),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.failing_workload", str(tmp_path / "data"), mode],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    report = json.loads(done.stdout)
    # Each operation that failed was met by someone: the disk is full for many, or it is once.
    assert report["operations"] > 100
    assert sum(report["errors"].values()) > report["operations"] / 2
