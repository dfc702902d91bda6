"""Runbooks are rescaled without losing or inventing points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from loadtest import churn, runbooks
from loadtest.churn import Live
from loadtest.datasets import AbsentDataError
from loadtest.runbooks import Step, rescaled

BOOK = {
    "max_pts": 100,
    1: {"operation": "insert", "start": 0, "end": 75},
    2: {"operation": "search"},
    3: {"operation": "replace", "tags_start": 0, "tags_end": 25, "ids_start": 75, "ids_end": 100},
    4: {"operation": "delete", "start": 50, "end": 75},
}


def test_steps_are_scaled_to_the_data() -> None:
    assert rescaled(BOOK, 1000) == [
        Step("insert", range(750), range(750)),
        Step("search"),
        Step("replace", range(250), range(750, 1000)),
        Step("delete", range(500, 750)),
    ]


@pytest.mark.parametrize("size", [7, 99, 1234])
def test_no_scale_leaves_points_and_rows_apart(size: int) -> None:
    for step in rescaled(BOOK, size):
        assert step.points.stop <= size
        assert step.rows.stop <= size
        assert step.operation != "replace" or len(step.points) == len(step.rows)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(ValueError, match="'explode'"):
        rescaled({1: {"operation": "explode", "end": 1}}, 10)


def test_the_model_follows_each_step() -> None:
    live = Live(np.full(8, -1, np.int64))
    for step in rescaled(BOOK, 8):
        live.apply(step)
    assert live.rows.tolist() == [6, 7, 2, 3, -1, -1, -1, -1]
    assert live.points.tolist() == [0, 1, 2, 3]


def test_of_several_schedules_that_for_the_largest_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORFLEET_TEST_DATA", str(tmp_path))
    (tmp_path / "runbooks").mkdir()
    books = {
        "small": {"max_pts": 10, 1: {"operation": "insert", "start": 0, "end": 10}},
        "large": {"max_pts": 20, 1: {"operation": "insert", "start": 0, "end": 10}, 2: {"operation": "search"}},
    }
    (tmp_path / "runbooks" / "both.yaml").write_text(yaml.safe_dump(books))
    assert runbooks.names() == ["both"]
    assert runbooks.read("both", 100) == [Step("insert", range(50), range(50)), Step("search")]
    with pytest.raises(AbsentDataError, match="no runbook 'other'; there are both"):
        runbooks.read("other", 100)


def test_fresh_collections_are_built_evenly_and_at_the_last_search() -> None:
    assert churn.built_at([2, 4]) == {2, 4}
    assert churn.built_at(list(range(100, 201))) == {100, 133, 167, 200}


@pytest.mark.parametrize(
    ("recall", "fresh", "met"),
    [(0.99, None, True), (0.985, 0.994, True), (0.985, 0.996, False), (0.5, 0.505, True)],
)
def test_the_bar_of_a_search_step(recall: float, fresh: float | None, met: bool) -> None:
    assert churn.Searched(1, 100, recall, fresh, churn.Stored(0.0, 0)).met is met
