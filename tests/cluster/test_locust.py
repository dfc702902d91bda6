"""Locust against a real cluster, headless, users in steps: every kind gets answers, each method has its own statistics."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import vectorfleet
from vectorfleet.local import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


def test_users_are_answered(cluster: LocalCluster, client: vectorfleet.Client, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py,loadtest/locust_steps.py", "--headless",
            "--step-from", "3", "--step-to", "6", "--step-s", "1.5", "--host", cluster.address, "--csv", str(tmp_path / "out"),
            "--collection", name, "--points", "2000", "--dim", "16", "--upserts", "10",
            "SearchUser", "UpsertUser", "MixedUser",
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "updating to 6 users" in done.stderr
    with (tmp_path / "out_stats.csv").open(newline="") as file:
        stats = {row["Name"]: row for row in csv.DictReader(file)}
    requests = {method: int(row["Request Count"]) for method, row in stats.items()}
    assert requests["Search"] > 0
    assert requests["Upsert"] > 0
    assert {row["Failure Count"] for row in stats.values()} == {"0"}
    # A run that ends may leave the last write of each user uncounted.
    assert 2_000 + 10 * requests["Upsert"] <= client.count(name) <= 2_000 + 10 * (requests["Upsert"] + 6)
