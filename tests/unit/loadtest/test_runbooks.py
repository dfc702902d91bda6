"""Runbooks are rescaled without losing or inventing points."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.churn import Live
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
