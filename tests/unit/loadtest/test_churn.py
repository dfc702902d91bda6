"""What a followed runbook leaves alive, where fresh collections are built beside it, and what a replica takes of the disk."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from loadtest import churn
from loadtest.runbooks import Step


def test_what_lives_follows_the_steps() -> None:
    live = churn.Live(np.full(6, -1, np.int64))
    live.apply(Step("insert", range(1, 5), range(1, 5)))
    live.apply(Step("replace", range(2, 4), range(4, 6)))
    live.apply(Step("delete", range(1, 2)))
    assert live.points.tolist() == [2, 3, 4]
    assert live.rows[live.points].tolist() == [4, 5, 4]


def test_fresh_ones_are_built_at_the_ends_and_evenly_between() -> None:
    assert churn.built_at([2, 4, 6]) == {2, 4, 6}
    assert churn.built_at(range(1, 101)) == {1, 34, 67, 100}


def test_a_search_within_the_allowance_of_all_needs_no_other_beside() -> None:
    assert searched(0.991).above_all
    assert searched(0.991).met
    assert not searched(0.991).left
    assert searched(0.95, 0.9599).met
    assert not searched(0.95, 0.9599).left
    assert not searched(0.95, 0.961).met


def test_where_few_are_compared_it_is_the_worst_and_the_others_are_said_to_be_left() -> None:
    waiting: list[tuple[churn.Searched, churn.Build]] = []
    compared = []
    for recall in (0.97, 0.94, 0.95, 0.93, 0.96):
        waiting.append((searched(recall), Future[float]))
        compared += [one.recall for one, _ in churn.due(waiting, 3, last=False)]
    assert compared == [0.94]
    assert [one.recall for one, _ in churn.due(waiting, 3, last=True)] == [0.93]
    assert not churn.due(waiting, 3, last=True)
    assert searched(0.97).left


def searched(recall: float, fresh: float | None = None) -> churn.Searched:
    return churn.Searched(1, 10, recall, fresh, churn.Stored(0.0, 0))


def test_all_files_of_all_replicas_count_once_and_no_others(tmp_path: Path) -> None:
    block = os.stat(tmp_path).st_blksize
    for node, uid, name, blocks in (
        ("node-0", "u1", "store/000007.log", 3),
        ("node-1", "u1", "segments/1/vectors", 5),
        ("node-1", "u2", "segments/1/vectors", 100),
    ):
        path = tmp_path / node / "replicas" / uid / "0" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(blocks * block))
        with path.open("rb") as file:
            os.fsync(file.fileno())  # blocks are counted once they are given
    before = churn._disk_bytes(tmp_path, "u1")
    assert 8 * block <= before < 100 * block
    log = tmp_path / "node-0" / "replicas" / "u1" / "0" / "store" / "000007.log"
    log.with_name("linked").hardlink_to(log)
    assert churn._disk_bytes(tmp_path, "u1") == before


def test_a_folder_that_is_replaced_while_it_is_looked_at_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = tmp_path / "node-0" / "replicas" / "u1" / "0" / "segments" / "12.building"
    building.mkdir(parents=True)
    scan = os.scandir

    def replaced(path: str | os.PathLike[str]) -> object:
        if Path(path) == building and building.exists():
            building.rename(building.with_name("12"))
        return scan(path)

    monkeypatch.setattr(os, "scandir", replaced)
    churn._disk_bytes(tmp_path, "u1")
    assert building.with_name("12").exists()
