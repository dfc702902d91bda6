"""Live-row bitmaps against a list of booleans."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shard_server.engine.bitmap import LiveRows

steps = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(0, 40)), st.tuples(st.just("kill"), st.lists(st.integers(0, 200)))
    ),
    max_size=12,
)


@given(rows=st.integers(0, 70), steps=steps)
def test_agrees_with_a_list_of_booleans(rows: int, steps: list) -> None:
    live, model = LiveRows.all_of(rows), [True] * rows
    for name, argument in steps:
        if name == "grow":
            model += [True] * argument
            live = live.extended(len(model))
        else:
            dying = [row for row in argument if row < len(model)]
            for row in dying:
                model[row] = False
            live = live.without(np.asarray(dying, np.int64))
        assert live.mask().tolist() == model
        assert live.live == sum(model)
        assert live.dead == len(model) - sum(model)
        assert live.live_rows().tolist() == [row for row, alive in enumerate(model) if alive]
        assert live.is_live(np.arange(len(model))).tolist() == model


def test_an_older_bitmap_stays_as_it_was() -> None:
    before = LiveRows.all_of(10).without(np.array([3]))
    before.without(np.array([4])).extended(20)
    assert before.live == 9
    assert before.is_live(np.array([3, 4])).tolist() == [False, True]
