"""`load`: everything arrives, an interrupted load goes on where it stopped, and mistakes name the file and the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.cli.conftest import Run, Told
from tests.unit.cli.test_readers import fvecs
from tests.unit.client.fake import FakeCluster
from vectorfleet import errors
from vectorfleet.cli import loading
from vectorfleet.cli.bookmark import Bookmark, state_folder
from vectorfleet.cli.rows import Fields

COUNT = 250


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.save(tmp_path / "v.npy", np.arange(COUNT * 2, dtype=np.float32).reshape(-1, 2))
    return tmp_path / "v.npy"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "VECTORS_PER_BATCH", 100)
    monkeypatch.setattr(loading, "TEXTS_PER_BATCH", 10)


def bookmarks(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state").rglob("*.json"))


def test_load_creates_and_loads(run: Run, told: Told, vectors: Path, fake: FakeCluster, tmp_path: Path) -> None:
    answer = told("load", str(vectors), "--collection", "c", "--create", "--metric", "dot", "--shards", "2")
    assert (answer["points"], answer["rows"], answer["first_row"]) == (COUNT, COUNT, 0)
    spec = fake.shelves["c"].spec
    assert (spec.dim, spec.shards, len(fake.shelves["c"].points)) == (2, 2, COUNT)
    assert fake.shelves["c"].points["249"].vector.tolist() == [498, 499]
    assert not bookmarks(tmp_path), "nothing is left to go on with"
    assert "loaded 250 points into c" in run("load", str(vectors), "--collection", "c", "--create").stdout


def test_load_of_records(told: Told, fake: FakeCluster, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"j{n}", "vector": [n, 1], "colour": "red"}) for n in range(COUNT)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    assert (
        told("load", str(tmp_path / "p.jsonl"), "--collection", "c", "--create", "--id-prefix", "x")["points"] == COUNT
    )
    assert json.loads(fake.shelves["c"].points["xj7"].payload) == {"colour": "red"}


def test_load_of_texts(run: Run, told: Told, fake: FakeCluster, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"title": f"t{n}", "text": f"words {n}"}) for n in range(25)))
    assert "--embedding-model" in run("load", str(path), "--collection", "t", "--create", code=2).stderr
    answer = told("load", str(path), "--collection", "t", "--create", "--embedding-model", "m", "--text-field", "title",
                  "--text-field", "text", "--wait")  # fmt: skip
    assert (answer["points"], answer["settled"]) == (25, True)
    assert fake.calls["Upsert"] == 3
    assert fake.requests[-2].points[0].text == "t20 words 20"


def test_an_interrupted_load_goes_on(run: Run, told: Told, vectors: Path, fake: FakeCluster, tmp_path: Path) -> None:
    run("create", "c", "--dim", "2")
    full = errors.ResourceExhausted("the disk is full", reason="DISK_FULL")
    fake.before = lambda method: fake.fail("Upsert", full) if fake.calls["Upsert"] == 2 else None
    done = run("load", str(vectors), "--collection", "c", code=1)
    assert "DISK_FULL" in done.stderr
    assert "200 of 250 rows are loaded; the same command goes on there" in done.stderr
    assert len(bookmarks(tmp_path)) == 1
    fake.before = lambda method: None
    done = run("load", str(vectors), "--collection", "c", "--json")
    assert json.loads(done.stdout)["first_row"] == 200
    assert json.loads(done.stdout)["points"] == 50
    assert len(fake.shelves["c"].points) == COUNT
    assert not bookmarks(tmp_path)


def test_control_c_says_how_to_go_on(
    run: Run, vectors: Path, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorfleet import Client

    real, calls = Client.upsert, []

    def upsert(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr("vectorfleet._client.Client.upsert", upsert)
    done = run("load", str(vectors), "--collection", "c", "--create", code=130)
    assert "100 of 250 rows are loaded" in done.stderr
    assert "going on at row 100" in run("load", str(vectors), "--collection", "c").stderr
    assert len(fake.shelves["c"].points) == COUNT


@pytest.mark.parametrize("change", ["content", "collection", "fields", "restart", "damaged"])
def test_a_bookmark_that_does_not_fit_is_passed_over(
    run: Run, told: Told, vectors: Path, fake: FakeCluster, tmp_path: Path, change: str
) -> None:
    run("create", "c", "--dim", "2")
    fake.before = lambda method: fake.fail("Upsert", errors.InternalError("x")) if fake.calls["Upsert"] == 2 else None
    run("load", str(vectors), "--collection", "c", code=1)
    fake.before = lambda method: None
    (bookmark,) = bookmarks(tmp_path)
    arguments = ["load", str(vectors), "--collection", "c"]
    if change == "content":
        np.save(vectors, np.zeros((COUNT + 1, 2)))
    elif change == "collection":
        run("drop", "c", "--yes")
        run("create", "c", "--dim", "2")
    elif change == "fields":
        arguments += ["--id-prefix", "x"]
    elif change == "restart":
        arguments += ["--restart"]
    else:
        bookmark.write_bytes(b"\xff[")
    assert told(*arguments)["first_row"] == 0
    assert len(fake.shelves["c"].points) >= COUNT


def test_a_state_folder_that_cannot_be_written_costs_only_the_bookmark(
    run: Run, vectors: Path, fake: FakeCluster, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    done = run("load", str(vectors), "--collection", "c", "--create")
    assert done.stderr.count("warning: an interrupted load would start over") == 1
    assert len(fake.shelves["c"].points) == COUNT


def test_the_progress_bar(run: Run, vectors: Path) -> None:
    assert run("load", str(vectors), "--collection", "c", "--create").stderr == ""
    assert "250/250" in run("load", str(vectors), "--collection", "c", "--progress").stderr


def test_files_that_do_not_fit_the_collection(run: Run, vectors: Path, tmp_path: Path) -> None:
    assert "--create" in run("load", str(vectors), "--collection", "c", code=1).stderr
    run("create", "c", "--dim", "3")
    told = run("load", str(vectors), "--collection", "c", code=1).stderr
    assert "dimension 2" in told
    assert "dimension 3" in told
    (tmp_path / "t.jsonl").write_text('{"text": "a"}')
    assert "no embedding model" in run("load", str(tmp_path / "t.jsonl"), "--collection", "c", code=1).stderr


def test_a_point_that_is_refused_is_found_in_the_file(run: Run, tmp_path: Path, fake: FakeCluster) -> None:
    lines = [json.dumps({"vector": [1, 2]})] * 130
    lines[119] = '{"vector": [1, NaN]}'
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    told = run("load", str(tmp_path / "p.jsonl"), "--collection", "c", "--create", code=1).stderr
    assert "p.jsonl, line 120" in told
    broken = np.ones((5, 2), np.float32)
    broken[3, 1] = np.inf
    told = run("load", str(fvecs(tmp_path / "v.fvecs", broken)), "--collection", "c", code=1).stderr
    assert "v.fvecs, row 3" in told


def test_where_bookmarks_lie(tmp_path: Path, vectors: Path) -> None:
    assert state_folder({"XDG_STATE_HOME": "/s"}) == Path("/s/vectorfleet/loads")
    assert (
        state_folder({"XDG_STATE_HOME": "relative"})
        == state_folder({})
        == Path.home() / ".local/state/vectorfleet/loads"
    )
    one = Bookmark(tmp_path / "b", vectors, "uid", Fields())
    assert one.rows() == 0
    one.write(7)
    (tmp_path / "link.npy").symlink_to(vectors)
    assert Bookmark(tmp_path / "b", tmp_path / "link.npy", "uid", Fields()).rows() == 7
    assert Bookmark(tmp_path / "b", vectors, "other", Fields()).rows() == 0
    one.clear()
    one.clear()
    assert one.rows() == 0
