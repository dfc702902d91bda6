"""The machine that asks again: what it may cost, and that it never costs an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import hedging
from router.hedging import (
    AFTER_MAX_S,
    AFTER_MIN_S,
    BURST,
    ERROR,
    KNOWN_MIN,
    SHARE_MAX,
    SLOW,
    Ask,
    GiveUp,
    HedgeBudget,
    Instruction,
    Race,
    Settle,
    ShardOutcome,
    late_after_s,
)
from router.latency import Latency
from router.merge import ShardAnswer
from vectorfleet import errors

SICK = errors.Unavailable("it stops", reason="SHUTTING_DOWN")
WRONG = errors.ResourceExhausted("the hits pass 64 MiB", reason="RESPONSE_TOO_LARGE")
STALE = errors.Unavailable("old map", reason="STALE_SHARD_MAP")
Others = Callable[[Collection[int]], Mapping[str, Sequence[int]]]


def answer(shard: int) -> ShardAnswer:
    nothing = np.empty(0, np.float32)
    return ShardAnswer(shard, np.zeros(1, np.uint32), nothing, [], [], b"", 0)


def on(node: str) -> Others:
    """All shards have another copy, on this node."""
    return lambda shards: {node: sorted(shards)}


def nobody(shards: Collection[int]) -> Mapping[str, Sequence[int]]:
    return {}


def race(others: Others, shards: int = 2, queries: int = 1, budget: HedgeBudget | None = None) -> Race:
    return Race("a", set(range(shards)), queries, budget or HedgeBudget(), others)


def all_of(shards: int, outcome: errors.VectorfleetError | None = None) -> dict[int, ShardOutcome]:
    return {shard: outcome or answer(shard) for shard in range(shards)}


def settled(instructions: Sequence[Instruction]) -> dict[int, tuple[str, str]]:
    """Shard → node and reason."""
    return {
        one.shard: (one.node, getattr(one.outcome, "reason", "")) for one in instructions if isinstance(one, Settle)
    }


def test_a_question_that_is_answered_in_time_is_asked_once() -> None:
    one = race(on("b"))
    assert settled(one.told("a", all_of(2))) == {0: ("a", ""), 1: ("a", "")}
    assert (one.open, one.asked_again) == (set(), {})


def test_the_first_good_answer_counts_and_the_other_is_given_up_and_dropped() -> None:
    one = race(on("b"))
    assert one.late() == [Ask("b", [0, 1], SLOW)]
    assert one.late() == [], "once"
    told = one.told("b", all_of(2))
    assert settled(told) == {0: ("b", ""), 1: ("b", "")}
    assert told[-1] == GiveUp("a")
    assert one.told("a", all_of(2)) == [], "it came too late"
    assert one.asked_again == {SLOW: "won"}


def test_a_late_node_that_answers_after_all_wins() -> None:
    one = race(on("b"))
    one.late()
    assert one.told("a", all_of(2))[-1] == GiveUp("b")
    assert one.asked_again == {SLOW: "lost"}


def test_a_hedge_that_fails_costs_nothing() -> None:
    one = race(on("b"))
    one.late()
    assert one.told("b", all_of(2, SICK)) == []
    assert settled(one.told("a", all_of(2))) == {0: ("a", ""), 1: ("a", "")}


def test_a_shard_that_fails_is_asked_of_another_copy_at_once_and_only_that() -> None:
    one = race(on("b"))
    told = one.told("a", {0: answer(0), 1: SICK})
    assert settled(told) == {0: ("a", "")}
    assert told[-1] == Ask("b", [1], ERROR)
    assert settled(one.told("b", {1: answer(1)})) == {1: ("b", "")}
    assert one.asked_again == {ERROR: "won"}
    both = race(on("b"))
    both.told("a", all_of(2, SICK))
    assert settled(both.told("b", all_of(2, SICK))) == {0: ("b", "SHUTTING_DOWN"), 1: ("b", "SHUTTING_DOWN")}
    assert both.asked_again == {ERROR: "lost"}


@pytest.mark.parametrize("error", [WRONG, STALE, errors.DeadlineExceeded("too late"), errors.InvalidRequest("no")])
def test_what_another_copy_would_say_as_well_is_not_asked_of_it(error: errors.VectorfleetError) -> None:
    one = race(on("b"))
    assert settled(one.told("a", all_of(2, error))) == {0: ("a", error.reason), 1: ("a", error.reason)}
    assert one.asked_again == {}


def test_no_reason_that_is_the_callers_fault_is_worth_another_copy() -> None:
    faults = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED"}
    assert errors.REASONS.keys() >= hedging._OF_ONE_COPY
    assert not {errors.REASONS[reason].code.name for reason in hedging._OF_ONE_COPY} & faults


def test_a_stale_map_is_told_whoever_else_failed_since_the_caller_can_mend_that() -> None:
    one = race(on("b"), shards=1)
    one.late()
    one.told("a", {0: STALE})
    assert settled(one.told("b", {0: SICK})) == {0: ("a", "STALE_SHARD_MAP")}


def test_nothing_is_asked_again_where_there_is_no_other_copy() -> None:
    one = race(nobody)
    assert one.late() == []
    assert settled(one.told("a", all_of(2, SICK))) == {0: ("a", "SHUTTING_DOWN"), 1: ("a", "SHUTTING_DOWN")}
    assert one.asked_again == {}


def test_a_late_node_is_waited_for_where_others_hold_only_a_part_and_a_failure_asks_for_that_part() -> None:
    def partly(shards: Collection[int]) -> dict[str, list[int]]:
        return {"b": [0]} if 0 in shards else {}

    one = race(partly)
    assert one.late() == []
    told = one.told("a", all_of(2, SICK))
    assert told == [Ask("b", [0], ERROR), Settle(1, "a", SICK)]


def test_copies_on_several_nodes_are_asked_at_once_and_each_is_given_up_by_itself() -> None:
    one = race(lambda shards: {"b": [0], "c": [1, 2]}, shards=3)
    assert one.late() == [Ask("b", [0], SLOW), Ask("c", [1, 2], SLOW)]
    assert settled(one.told("b", {0: answer(0)})) == {0: ("b", "")}
    assert settled(one.told("c", {1: answer(1), 2: SICK})) == {1: ("c", "")}
    assert one.open == {2}, "the first may still answer it"
    assert settled(one.told("a", all_of(3))) == {2: ("a", "")}


def test_a_question_that_is_large_by_itself_is_not_late_but_may_fail() -> None:
    one = race(on("b"), queries=BURST + 1)
    assert one.late() == []
    assert one.told("a", all_of(2, SICK)) == [Ask("b", [0, 1], ERROR)]


def test_without_a_token_the_first_node_is_waited_for() -> None:
    budget = HedgeBudget(tokens=0.5)
    one = race(on("b"), budget=budget)
    assert one.late() == []
    assert one.asked_again == {SLOW: "refused"}
    assert settled(one.told("a", all_of(2))) == {0: ("a", ""), 1: ("a", "")}


def test_a_node_is_late_after_its_95th_percentile_within_reason() -> None:
    latency = Latency()
    for _ in range(KNOWN_MIN - 1):
        latency.observe(0.02, 0.0)
    assert late_after_s(latency, 0.0) == AFTER_MAX_S
    latency.observe(0.02, 0.0)
    assert late_after_s(latency, 0.0) == pytest.approx(0.02, rel=0.1)
    quick, slow = Latency(), Latency()
    for _ in range(KNOWN_MIN):
        quick.observe(0.0005, 0.0)
        slow.observe(30.0, 0.0)
    assert (late_after_s(quick, 0.0), late_after_s(slow, 0.0)) == (AFTER_MIN_S, AFTER_MAX_S)


@given(st.lists(st.tuples(st.integers(1, 1024), st.booleans())))
def test_the_budget_is_never_exceeded(asked: list[tuple[int, bool]]) -> None:
    budget, earned, spent = HedgeBudget(), 0, 0
    for queries, again in asked:
        budget.earn(queries)
        earned += queries
        if again and budget.spend(queries):
            spent += queries
            # A question beyond the bucket's size leaves a debt, which the next one waits for.
            assert spent <= SHARE_MAX * earned + max(BURST, queries)
        assert budget.tokens <= BURST


@given(st.data())
def test_whatever_happens_each_shard_is_settled_once_and_well_if_anybody_answered_in_time(data: st.DataObject) -> None:
    """Random copies, outcomes and orders: what the invariants of the module say."""
    shards = data.draw(st.integers(1, 4))
    copies = {shard: data.draw(st.sampled_from(["", "b", "c"])) for shard in range(shards)}
    tokens = data.draw(st.sampled_from([0.0, BURST]))

    def others(wanted: Collection[int]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for shard in sorted(wanted):
            if copies[shard]:
                groups.setdefault(copies[shard], []).append(shard)
        return groups

    one = Race("a", set(range(shards)), 1, HedgeBudget(tokens), others)
    under_way: dict[str, Sequence[int]] = {"a": range(shards)}
    asked_of = {shard: ["a"] for shard in range(shards)}
    known: dict[int, list[ShardOutcome]] = {shard: [] for shard in range(shards)}
    settlements: dict[int, ShardOutcome] = {}
    rounds = 0

    def carry_out(instructions: Sequence[Instruction]) -> None:
        nonlocal rounds
        rounds += any(isinstance(instruction, Ask) for instruction in instructions)
        for instruction in instructions:
            match instruction:
                case Ask(node, numbers, _):
                    assert node not in under_way
                    under_way[node] = numbers
                    for shard in numbers:
                        asked_of[shard].append(node)
                case GiveUp(node):
                    assert not set(under_way.pop(node)) - settlements.keys(), "it was still needed"
                case Settle(shard, _, outcome):
                    assert shard not in settlements
                    settlements[shard] = outcome

    while one.open:
        assert under_way, "somebody is waited for as long as anything is open"
        if data.draw(st.booleans(), "late"):
            carry_out(one.late())
        node = data.draw(st.sampled_from(sorted(under_way)), "who answers")
        numbers = under_way.pop(node)
        outcomes: dict[int, ShardOutcome] = {
            shard: data.draw(st.sampled_from([answer(shard), SICK, WRONG]), "outcome") for shard in numbers
        }
        for shard, outcome in outcomes.items():
            known[shard].append(outcome)
        carry_out(one.told(node, outcomes))
    assert rounds <= 1, "asked again at most once"
    assert rounds == 0 or tokens, "and not without a token"
    assert settlements.keys() == set(range(shards))
    for shard, outcome in settlements.items():
        assert len(asked_of[shard]) <= (2 if copies[shard] else 1), "a shard of one copy is asked once"
        good = [one for one in known[shard] if isinstance(one, ShardAnswer)]
        assert isinstance(outcome, ShardAnswer) == bool(good), "an answer that came was lost, or a failure outran one"
