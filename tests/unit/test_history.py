"""The history checker decides as trying every order does, and names what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.history import Call, check, load, save
from tests.cluster.register import FOREVER, Kind, Step, unexplained


def explained_by_some_order(steps: Sequence[Step]) -> bool:
    """The definition, by brute force: all subsets of the unknown steps, all orders that respect time."""
    certain = [step for step in steps if step.end != FOREVER]
    unknown = [step for step in steps if step.end == FOREVER]
    chosen = itertools.chain.from_iterable(itertools.combinations(unknown, n) for n in range(len(unknown) + 1))
    return any(_works(order) for some in chosen for order in itertools.permutations([*certain, *some]))


def _works(order: Sequence[Step]) -> bool:
    if any(later.end < earlier.start for earlier, later in itertools.combinations(order, 2)):
        return False
    value: int | None = None
    for step in order:
        if step.kind is Kind.READ and step.value != value:
            return False
        if step.kind is Kind.DELETE:
            if step.existed is not None and step.existed != (value is not None):
                return False
            value = None
        elif step.kind is Kind.WRITE:
            value = step.value
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Up to six steps on one id, of which writes and deletes may have unknown outcomes."""
    steps = []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(Kind))
        start = draw(st.integers(0, 12))
        end = start + draw(st.integers(1, 6))
        if kind is not Kind.READ and draw(st.booleans()):
            end = FOREVER
        value = (
            number if kind is Kind.WRITE else draw(st.sampled_from([None, 0, 1, 2, 3])) if kind is Kind.READ else None
        )
        existed = draw(st.sampled_from([None, True, False])) if kind is Kind.DELETE and end != FOREVER else None
        steps.append(Step(kind, start, end, value, existed=existed))
    return steps


@settings(max_examples=400)
@given(histories())
def test_it_decides_as_trying_every_order_does(steps: list[Step]) -> None:
    # Ends and starts at one time count as concurrent for both.
    assert (unexplained(steps) is None) == explained_by_some_order(steps)


def write(value: int, start: int, end: int, outcome: str = "ok") -> Call:
    return Call("w", "upsert", start, end, outcome, wrote={"a": value})


def delete(start: int, end: int, outcome: str = "ok", count: int = -1) -> Call:
    return Call("w", "delete", start, end, outcome, deleted=("a",), deleted_count=count)


def read(value: int | None, start: int, end: int, version: int = 0) -> Call:
    seen = {} if value is None else {"a": (value, version)}
    return Call("r", "get", start, end, "ok", seen=seen, absent=("a",) if value is None else ())


@pytest.mark.parametrize(
    "calls",
    [
        [write(1, 0, 1), read(1, 2, 3), delete(4, 5, count=1), read(None, 6, 7)],
        [write(1, 0, 5), read(None, 1, 2), read(1, 3, 4)],
        [write(1, 0, 1, "unknown"), read(None, 2, 3), read(1, 8, 9)],
        [write(1, 0, 1), write(2, 2, 3, "unknown"), read(1, 4, 5)],
        [write(1, 0, 1), delete(2, 3, "unknown"), read(1, 4, 5), read(None, 6, 7)],
        [write(1, 0, 1, "failed"), read(None, 2, 3)],
        [write(1, 0, 9), write(2, 0, 9), read(2, 1, 2, 7), read(1, 3, 4, 9)],
        [write(1, 0, 1, "unknown"), delete(2, 3, count=1), read(None, 4, 5)],
    ],
)
def test_what_a_correct_store_may_answer(calls: list[Call]) -> None:
    assert check(calls).violations == ()


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([write(1, 0, 1), read(None, 2, 3)], "shows it absent, where a correct store holds: value 1"),
        ([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)], "shows value 1"),
        ([write(1, 0, 1), delete(2, 3), read(1, 4, 5)], "holds: absent"),
        ([write(1, 0, 1), read(1, 2, 3), read(None, 4, 5)], "shows it absent"),
        ([write(1, 0, 1, "unknown"), read(1, 2, 3), read(None, 4, 5)], "shows it absent"),
        ([write(1, 0, 1, "failed"), read(1, 2, 3)], "a write that was refused"),
        ([read(5, 2, 3)], "shows value 5"),
        ([read(1, 0, 1), write(1, 2, 3)], "shows value 1"),
        ([write(1, 0, 1), delete(2, 3, count=0)], "did not find it"),
        ([write(1, 0, 9), write(2, 0, 9), read(2, 1, 2, 9), read(1, 3, 4, 7)], "version 7"),
        ([write(1, 0, 1), read(1, 2, 3, 7), read(1, 4, 5, 8)], "version 8"),
        ([write(1, 0, 1), delete(0, 9, "unknown"), read(None, 2, 3), read(1, 4, 5)], "shows value 1"),
        ([Call("r", "search", 0, 1, "ok", faults=["answers id a twice"])], "answers id a twice"),
    ],
)
def test_what_no_correct_store_answers(calls: list[Call], words: str, tmp_path: Path) -> None:
    verdict = check(calls)
    assert any(words in violation.what for violation in verdict.violations), verdict
    save(tmp_path / "history.jsonl", calls, verdict)
    assert check(load(tmp_path / "history.jsonl")) == verdict


def test_it_stays_quick_when_hundreds_of_outcomes_are_unknown() -> None:
    calls = [write(number, number, number + 1, "unknown") for number in range(1, 300)]
    calls += [delete(number, number + 1, "unknown") for number in range(300)]
    calls += [read(value, 1000 + 2 * at, 1001 + 2 * at) for at, value in enumerate((7, None, 9, None, 250, None))]
    assert check(calls).violations == ()
    calls.append(read(9, 2000, 2001))
    assert len(check(calls).violations) == 1
