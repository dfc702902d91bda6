"""The commands that talk to a cluster: what they say to people and to programs, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vectorfleet
from tests.unit.cli.conftest import Run, Told
from tests.unit.client.fake import FakeCluster
from vectorfleet import errors
from vectorfleet.v1 import types_pb2


@pytest.fixture
def films(fake: FakeCluster) -> str:
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("films", dim=2)
        payloads = [{"title": "Alien"}, {"title": "Brazil, a long title " * 20}, None]
        client.upsert("films", ids=["a", "b", "日本"], vectors=[[0, 0], [0.1, 0], [5, 5]], payloads=payloads)
    return "films"


def test_create(run: Run, told: Told, fake: FakeCluster) -> None:
    assert run("create", "c", "--dim", "3").stdout == "created c: dimension 3, l2, 4 shards\n"
    made = told("create", "d", "--embedding-model", "m", "--metric", "dot", "--shards", "2", "--index", "flat")
    assert (made["name"], made["metric"], made["shards"], made["index"]["kind"]) == ("d", "dot", 2, "flat")
    assert made["create_time"].startswith("2027-01-15T")
    assert run("create", "c", "--dim", "3", code=1).stderr == "Error: COLLECTION_EXISTS: collection 'c' exists\n"
    assert fake.shelves["c"].spec.shards == 4


def test_count_and_get(run: Run, told: Told, films: str) -> None:
    assert run("count", films).stdout == "3\n"
    assert told("count", films) == {"points": 3}
    lines = run("get", films, "b", "nobody", "日本").stdout.splitlines()
    assert lines[0].split() == ["ID", "VERSION", "PAYLOAD"]
    assert [line.split()[0] for line in lines[1:]] == ["b", "日本"]
    (point,) = told("get", films, "a", "--with-vector")["points"]
    assert point == {"id": "a", "version": 1, "payload": {"title": "Alien"}, "vector": [0.0, 0.0]}
    assert run("get", films, "nobody", code=1).stderr == "Error: none of these ids exists in films\n"


def test_search(run: Run, told: Told, films: str, tmp_path: Path) -> None:
    shown = run("search", films, "--vector", "[0.1, 0]", "-k", "2").stdout
    assert shown.splitlines()[0].split() == ["#", "SCORE", "ID", "PAYLOAD"]
    assert "Alien" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "1 query, 4/4 shards" in shown
    answer = told("search", films, "--vector", "[0.1, 0]", "-k", "2", "--with-vector")
    assert [hit["id"] for hit in answer["hits"][0]] == ["b", "a"]
    assert answer["hits"][0][1] == {"id": "a", "score": 0.1, "payload": {"title": "Alien"}, "vector": [0.0, 0.0]}
    assert answer["coverage"] == {"shards_total": 4, "shards_answered": 4, "missing": []}
    np.save(tmp_path / "q.npy", np.zeros((3, 2)))
    answer = told("search", films, "--file", str(tmp_path / "q.npy"), "-k", "1", "--no-payload")
    assert [[hit["id"] for hit in hits] for hits in answer["hits"]] == [["a"]] * 3
    assert answer["hits"][0][0]["payload"] is None


def test_search_by_text(run: Run, fake: FakeCluster) -> None:
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("t", embedding_model="m")
        client.upsert("t", ids=["a"], texts=["words"])
    shown = run("search", "t", "--text", "words", "--text", "others").stdout
    assert "query 0: words" in shown
    assert "2 queries" in shown


def test_gaps_are_warned_of(run: Run, films: str, fake: FakeCluster) -> None:
    fake.missing = [types_pb2.MissingShard(shard=2, reason="SHARD_UNAVAILABLE", message="node-1 is away")]
    done = run("search", films, "--vector", "[0, 0]", "--json")
    assert done.stderr == "warning: 3 of 4 shards answered (shard 2: SHARD_UNAVAILABLE node-1 is away)\n"
    assert json.loads(done.stdout)["coverage"]["missing"][0]["shard"] == 2


def test_delete(run: Run, told: Told, films: str, fake: FakeCluster) -> None:
    assert run("delete", films, "a", "nobody").stdout == "deleted 1 point of films\n"
    assert told("delete", films, "b") == {"deleted": 1}
    for options in ([], ["--json"]):  # as of a script whose list of ids is empty
        assert "at least one id" in run("delete", films, *options, code=2).stderr
    assert "--yes" in run("delete", films, "--yes", code=2).stderr
    assert list(fake.shelves[films].points) == ["日本"]


def test_drop(run: Run, told: Told, films: str, fake: FakeCluster) -> None:
    assert "films with its 3 points: add --yes" in run("drop", films, code=2).stderr
    assert "a" in run("drop", films, "a", "--yes", code=2).stderr
    assert films in fake.shelves
    assert told("drop", films, "--yes") == {"collection": films, "removed": True}
    assert not fake.shelves


def test_status(run: Run, told: Told, films: str) -> None:
    shown = run("status").stdout
    for word in ("etcd connected", "controller router-0", "node-0", "films", "settled", "primary", "serving"):
        assert word in shown
    answer = told("status", films)
    assert [node["id"] for node in answer["nodes"]] == ["node-0", "node-1"]
    assert answer["collections"][0]["progress"]["points"] == 3
    assert answer["shards"][0]["replicas"][0]["status"] == "serving"
    assert "nowhere" in run("status", "nowhere", code=1).stderr


def test_what_the_shard_map_does_not_know_is_warned_of(run: Run, fake: FakeCluster) -> None:
    fake.unknown_collections = ["films", "songs"]
    done = run("status")
    assert "no collections" in done.stdout
    assert done.stderr.startswith(
        "warning: node-1 holds replicas of films, songs on disk, of which the shard map knows nothing"
    )


def test_backup(run: Run, told: Told, films: str, fake: FakeCluster, tmp_path: Path) -> None:
    shown = run("backup", "s3://bucket/folder").stdout
    assert shown == "backup b1 of 1 collection in s3://bucket/folder: 3.0 MiB in 9 files; 2.0 MiB were there already\n"
    bar = run("backup", "folder", "--progress").stderr
    assert fake.requests[-1].destination == str(Path("folder").absolute()), "nodes know nothing of where we stand"
    assert "1.00M/1.00M" in bar
    assert "2/2 shards" in bar
    made = told("backup", str(tmp_path), "--collection", films)
    assert (made["id"], made["new_bytes"], made["collections"]) == ("b1", 1 << 20, [{"name": films, "seqnos": [3, 4]}])
    assert list(fake.requests[-1].collections) == [films]
    assert "nowhere" in run("backup", "/b", "--collection", "nowhere", code=1).stderr


def test_restore(run: Run, told: Told, fake: FakeCluster) -> None:
    assert run("restore", "/backups").stdout == "restored films from backup b1\n"
    restored = told("restore", "/backups", "--collection", "films=movies", "--collection", "songs", "--backup", "b1")
    assert restored == {"id": "b1", "collections": ["movies", "songs"]}
    assert "BACKUP_NOT_FOUND" in run("restore", "/backups", "--backup", "b2", code=1).stderr
    for nonsense in ("=", "films=", "=movies"):
        assert "NAME=NEW" in run("restore", "/backups", "--collection", nonsense, code=2).stderr


def test_status_of_an_empty_cluster(run: Run) -> None:
    assert "no collections" in run("status").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["count", "nowhere"], 1, "COLLECTION_NOT_FOUND: there is no collection 'nowhere'"),
        (["count", "c", "--address", "127.0.0.1:9", "--timeout", "0.5"], 1, "127.0.0.1:9 cannot be reached"),
        (["count", "c", "--address", "nonsense"], 1, "host:port"),
        (["count", "c", "--timeout", "0"], 2, "--timeout"),
        (["count"], 2, "NAME"),
        (["create", "c", "--dim", "9999"], 1, "dim must be 1 to 4096 (field dim)"),
        (["create", "c", "--metric", "euclid"], 2, "--metric"),
        (["search", "c"], 2, "one kind of query"),
        (["search", "c", "--text", "a", "--vector", "[1]"], 2, "one kind of query"),
        (["search", "c", "--vector", "[1"], 2, "no JSON list of numbers"),
        (["search", "c", "--vector", "[[1]]"], 2, "not one list"),
        (["search", "c", "--vector", '["a"]'], 2, "no JSON list of numbers"),
        (["search", "c", "--file", "nowhere.npy"], 2, "nowhere.npy"),
        (["search", "c", "--vector", "[NaN]"], 1, "NOT_FINITE"),
        (["get", "c"], 2, "ID"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, arguments: list[str], code: int, message: str) -> None:
    told = run(*arguments, code=code).stderr
    assert message in told
    assert [line for line in told.splitlines() if line.startswith("Error: ")] == told.splitlines()[-1:]


def test_an_error_of_several_lines_is_told_in_one(run: Run, fake: FakeCluster) -> None:
    fake.fail("Count", errors.InternalError("broken\n  in the middle"))
    assert run("count", "c", code=1).stderr == "Error: INTERNAL: broken in the middle\n"


@pytest.mark.parametrize(
    "command", ["", "up", "load", "search", "status", "create", "drop", "get", "delete", "count", "backup", "restore"]
)
def test_help(run: Run, command: str) -> None:
    shown = run(*([command] if command else []), "--help").stdout
    assert "Usage: vectorfleet" in shown
    if not command:
        assert "Exit codes: 0 done, 1 failed" in shown


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"vectorfleet, version {vectorfleet.__version__}\n"


def test_an_interrupt_has_its_own_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vectorfleet._client.Client.count", interrupted)
    assert run("count", "c", code=130).stderr == "interrupted\n"
