"""The command line as its users run it: real processes, from `vectorfleet up` to the signal that ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
VECTORFLEET = [sys.executable, "-c", "from vectorfleet.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [*VECTORFLEET, *arguments], env=ENVIRONMENT, text=True, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@contextlib.contextmanager
def up(data: Path, *more: str, end: signal.Signals = signal.SIGTERM) -> Iterator[tuple[str, psutil.Process]]:
    """`vectorfleet up` until the one line that says that it is ready, with the address of that line; ended by a signal."""
    log = (data.parent / f"{data.name}.stderr").open("w")
    process = subprocess.Popen(
        [*VECTORFLEET, "up", "--data", str(data), "--port", "0", *more],
        env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=log,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        addresses = [
            word.strip("`'\",.()") for word in line.split() if ":" in word and word.strip("`'\",.()")[-1:].isdigit()
        ]
        assert addresses, f"no address in {line!r}; {Path(log.name).read_text()}"
        yield addresses[0], psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(end)
        try:
            assert process.wait(timeout=30) == 0, Path(log.name).read_text()
            assert process.stdout is not None
            assert process.stdout.read().count("\n") == 0, "one line, and no more"
            _, alive = psutil.wait_procs(children, timeout=1)
            assert not alive, "children outlive `vectorfleet up`"
        finally:
            process.kill()
            process.stdout.close()
            log.close()


def test_up_load_search_stop_and_again(tmp_path: Path, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((1_500, 8)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    query = json.dumps(vectors[77].tolist())
    with up(tmp_path / "data", "--nodes", "2") as (address, _):
        to = ["--address", address]
        run("create", "plain", "--dim", "8", "--shards", "4", *to)
        run("load", str(tmp_path / "vectors.npy"), "--collection", "plain", *to)
        assert told("count", "plain", *to)["points"] == 1_500
        before = told("search", "plain", "--vector", query, "-k", "5", *to)
    with up(tmp_path / "data", "--nodes", "2", end=signal.SIGINT) as (address, process):
        to = ["--address", address]
        assert told("count", "plain", *to)["points"] == 1_500
        assert told("search", "plain", "--vector", query, "-k", "5", *to)["hits"] == before["hits"]
        assert len(told("status", *to)["nodes"]) == 2
        # A child that dies is started again.
        (victim, *_) = [child for child in process.children(recursive=True) if "shard_server" in child.cmdline()]
        victim.kill()
        until(
            lambda: told("search", "plain", "--vector", query, "-k", "5", *to)["hits"] == before["hits"],
            within_s=60,
            what="the node is started again",
        )


def test_ready_files_of_every_kind(cluster: LocalCluster, name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    to = ["--address", cluster.address]
    vectors = rng.standard_normal((300, 4)).astype(np.float32)
    dims = np.full((300, 1), 4, np.int32)
    (tmp_path / "a.fvecs").write_bytes(np.hstack((dims.view(np.float32), vectors)).tobytes())
    lines = [json.dumps({"id": f"j{row}", "vector": vectors[row].tolist(), "colour": "red"}) for row in range(300)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    run("create", name, "--dim", "4", *to)
    run("load", str(tmp_path / "a.fvecs"), "--collection", name, *to)
    run("load", str(tmp_path / "b.jsonl"), "--collection", name, *to)
    assert told("count", name, *to)["points"] == 600
    got = told("get", name, "j7", *to)
    assert "red" in json.dumps(got)
    run("delete", name, "j7", *to)
    assert told("count", name, *to)["points"] == 599


def test_mistakes_are_told_in_one_line(cluster: LocalCluster, name: str) -> None:
    to = ["--address", cluster.address]
    message = run("count", "nowhere", *to, code=1)
    assert "nowhere" in message
    assert "Traceback" not in message
    message = run("count", name, "--address", "127.0.0.1:9", code=1)
    assert "127.0.0.1:9" in message
    assert "Traceback" not in message
    assert "Usage" in run("nonsense", code=2)


@pytest.mark.parametrize(
    "command", ["", "up", "load", "search", "status", "create", "drop", "get", "delete", "count", "backup", "restore"]
)
def test_help(command: str) -> None:
    assert "Usage" in run(*([command] if command else []), "--help")
