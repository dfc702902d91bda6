"""Each file operation of a replica's life fails once, RocksDB's, FAISS's and ours, reads and mappings: see `failing_workload`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import faults

ROOT = Path(__file__).resolve().parents[3]
MEMORY = Path("/dev/shm")  # noqa: S108 (its one file is made by mkdtemp)
MEMORY_BYTES_MIN = 1 << 28


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is room: the speed of a disk says nothing here, and a sync that is not to fail does nothing."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < MEMORY_BYTES_MIN:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="vectorfleet-", dir=MEMORY) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("mode", "operations_min"),
    [
        ("full", 100),
        ("short-once", 100),
        ("broken-once", 100),
        ("forgotten-once", 25),
        ("unreadable-once", 60),
        ("unmappable-once", 5),
    ],
)
def test_whichever_operation_fails_nothing_is_lost_and_writes_come_back(
    folder: Path, tmp_path: Path, mode: str, operations_min: int
) -> None:
    environment = os.environ | {
        "LD_PRELOAD": str(faults.built_in(tmp_path)),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.engine.failing_workload", str(folder / "data"), mode],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    report = json.loads(done.stdout)
    # Each operation that failed was met by someone: the disk is full for many, or it is once.
    assert report["operations"] >= operations_min
    assert sum(report["errors"].values()) > report["operations"] / 2
