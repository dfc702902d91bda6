"""`vectorfleet sizing`: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vectorfleet.cli import main


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["sizing", *arguments], prog_name="vectorfleet")
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def test_it_prints_nodes_memory_disk_and_what_costs(tmp_path: Path) -> None:
    done = run("--points", "1e9", "--dim", "768", "--replicas", "2")
    first = done.stdout.splitlines()[0]
    assert first.startswith("1,000,000,000 points of 768 dimensions, 2 copies: 19 nodes with 55.5 GiB of memory")
    for part in (
        "MEMORY OF A NODE",
        "DISK OF A NODE",
        "WHAT WOULD CHANGE IT",
        "raw vectors kept in memory",
        "--cached 0",
    ):
        assert part in done.stdout
    assert "this release keeps 1 of each shard" in done.stderr
    assert "4,096 lists where 32,768 would suit" in done.stderr


def test_programs_read_the_same_numbers() -> None:
    told = json.loads(run("--points", "1_000_000", "--dim", "128", "--shards", "2", "--json").stdout)
    assert (told["nodes"], told["shards"], told["shape"]) == (1, 2, {"nlist": 2048, "m": 64})
    # Measured at a million of these: 42 to 46 bytes a vector.
    assert told["index_bytes_a_vector"] == pytest.approx(42.2, abs=0.1)
    assert told["memory_bytes"] >= sum(item["bytes"] for item in told["memory"])
    assert {one["change"].split()[0] for one in told["alternatives"]} >= {"--cached", "--m"}
    assert told["warnings"] == []


def test_it_writes_a_component_that_it_can_write_again(tmp_path: Path) -> None:
    folder = tmp_path / "sizing"
    arguments = ("--points", "2e8", "--dim", "96", "--node-memory", "16GiB", "--cosine", "--write", str(folder))
    run(*arguments)
    written = (folder / "kustomization.yaml").read_text()
    assert "#   vectorfleet sizing --points 200000000 --dim 96 --cosine --node-memory 16GiB --write FOLDER\n" in written
    run("--points", "2000", "--dim", "96", "--write", str(folder))
    assert (folder / "kustomization.yaml").read_text() != written
    run(*arguments)
    assert (folder / "kustomization.yaml").read_text() == written


def test_it_leaves_files_of_others_alone(tmp_path: Path) -> None:
    mine = tmp_path / "kustomization.yaml"
    mine.write_text("resources: []\n")
    done = run("--points", "10", "--dim", "2", "--write", str(tmp_path), code=1)
    assert "was not written by this command" in done.stderr
    assert mine.read_text() == "resources: []\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--points", "many", "--dim", "3"], 2, "no whole number"),
        (["--points", "1.5", "--dim", "3"], 2, "no whole number"),
        (["--points", "inf", "--dim", "3"], 2, "no whole number"),
        (["--points", "10", "--dim", "3", "--node-memory", "lots"], 2, "no size"),
        (["--points", "10", "--dim", "3", "--node-memory", "4ii"], 2, "no size"),
        (["--points", "0", "--dim", "3"], 1, "points must be 1 to"),
        (["--points", "10", "--dim", "0"], 1, "dim must be 1 to"),
        (["--points", "10", "--dim", "3", "--cached", "2"], 1, "cached must be 0 to 1"),
        (["--points", "1e12", "--dim", "4096"], 1, "choose a larger --node-"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments, code=code)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_operators_page_says_what_the_command_says() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    rows = re.findall(
        r"^\| (\d+)([MB]) × (\d+)([^|]*)\| (\d+) \| ([\d.]+) GiB \| ([\d.]+) GiB \| ([\d.]+) \|", page, re.MULTILINE
    )
    assert len(rows) == 6
    for count, unit, dim, more, nodes, memory, volume, index in rows:
        arguments = ["--points", str(int(count) * {"M": 10**6, "B": 10**9}[unit]), "--dim", dim]
        arguments += ["--shards", "2"] if "two shards" in more else []
        arguments += ["--payload-bytes", "0", "--payload-values", "0"] if "no payloads" in more else []
        arguments += ["--replicas", "2"] if "two copies" in more else []
        told = json.loads(run(*arguments, "--json").stdout)
        said = (told["nodes"], told["memory_bytes"] / 2**30, told["volume_bytes"] / 2**30)
        assert said == (int(nodes), pytest.approx(float(memory), abs=0.05), pytest.approx(float(volume), abs=0.5))
        assert told["index_bytes_a_vector"] == pytest.approx(float(index), abs=0.05)
