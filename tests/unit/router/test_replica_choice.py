"""Which copies answer: the only one for nothing, else the better of two, in as few questions as that allows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from router.replica_choice import Standing, Standings, by_node, other_copies, read_replica, several_copies
from vectorfleet.cluster.shard_map import ShardAssignment

IDLE = Standing(quiet=False, outstanding=0, typical_s=0.01)
NODES = "abcde"


def shard(number: int, *copies: str) -> ShardAssignment:
    return ShardAssignment(number, number, number, 1, copies[0] if copies else "", copies, copies)


def standing_of(**nodes: Standing | None) -> Standings:
    return nodes.get


def never(node: str) -> Standing | None:
    raise AssertionError(f"nobody need know of {node}")


def groups(of: dict[str, list[ShardAssignment]]) -> dict[str, list[int]]:
    return {node: [shard.shard for shard in shards] for node, shards in of.items()}


def test_a_shard_of_one_copy_is_asked_of_it_whatever_is_known_of_that() -> None:
    shards = [shard(0, "a"), shard(1, "b"), shard(2, "a"), shard(3)]
    assert not several_copies(shards)
    assert groups(by_node(shards, never, random.Random(1))) == {"a": [0, 2], "b": [1], "": [3]}
    assert read_replica(shards[0], never, random.Random(1)) == "a"
    assert read_replica(ShardAssignment(0, 0, 1, 1, "a", ("a", "b"), ("a",)), never, random.Random(1)) == "a", "b lags"


def test_who_has_less_to_do_comes_first_and_who_is_faster_second() -> None:
    choices = [
        (Standing(False, 3, 0.001), Standing(False, 2, 0.9), "b"),
        (Standing(False, 2, 0.02), Standing(False, 2, 0.01), "b"),
        (Standing(False, 2, 0.01), Standing(False, 2, 0.0), "b"),
        (Standing(True, 0, 0.001), Standing(False, 9, 0.9), "b"),
        (IDLE, IDLE, "a"),
        (IDLE, None, "a"),
        (None, Standing(True, 99, 9.0), "b"),
        (None, None, "a"),
    ]
    for a, b, better in choices:
        assert read_replica(shard(0, "a", "b"), standing_of(a=a, b=b), random.Random(1)) == better, (a, b)


def test_among_equals_a_question_goes_to_few_nodes_and_to_those_that_are_asked_anyway() -> None:
    slower = Standing(False, 0, 0.02)
    shards = [shard(0, "a", "b"), shard(1, "c", "b"), shard(2, "b")]
    assert groups(by_node(shards, standing_of(a=IDLE, b=slower, c=IDLE), random.Random(1))) == {"b": [2, 0, 1]}
    busy = Standing(False, 1, 0.001)
    assert groups(by_node(shards, standing_of(a=IDLE, b=busy, c=IDLE), random.Random(1))) == {
        "b": [2],
        "a": [0],
        "c": [1],
    }


def test_two_of_many_copies_are_looked_at_so_that_not_all_routers_go_to_the_best() -> None:
    nodes = {node: Standing(False, 0, 0.001 * rank) for rank, node in enumerate(NODES, 1)}
    draw = random.Random(3)
    chosen = Counter(read_replica(shard(0, *NODES), standing_of(**nodes), draw) for _ in range(1_000))
    assert chosen["a"] > chosen["b"] > chosen["c"] > chosen["d"] > 0
    assert chosen["e"] == 0, "the worst of all is never the better of two"


@st.composite
def maps(draw: st.DrawFn) -> list[ShardAssignment]:
    copies = st.lists(st.sampled_from(NODES), max_size=3, unique=True)
    return [shard(number, *draw(copies)) for number in range(draw(st.integers(1, 6)))]


known = st.fixed_dictionaries(
    {
        node: st.none() | st.builds(Standing, st.booleans(), st.integers(0, 3), st.sampled_from((0.0, 0.01, 0.1)))
        for node in NODES
    }
)


@given(maps(), known, st.integers(), st.sampled_from(NODES))
def test_each_shard_goes_to_one_of_its_copies_and_to_one_that_can_be_reached_if_there_is_one(
    shards: list[ShardAssignment], nodes: dict[str, Standing | None], seed: int, asked: str
) -> None:
    reachable: Callable[[str], bool] = lambda node: nodes[node] is not None  # noqa: E731
    chosen = by_node(shards, nodes.get, random.Random(seed))
    assert sorted(one.shard for group in chosen.values() for one in group) == [one.shard for one in shards]
    for node, group in chosen.items():
        for one in group:
            assert node in (one.in_sync or ("",))
            if len(one.in_sync) > 1 and any(map(reachable, one.in_sync)):
                assert reachable(node)
    again = other_copies(shards, asked, nodes.get, random.Random(seed))
    assert asked not in again
    for node, group in again.items():
        assert all(node in one.in_sync and reachable(node) for one in group)
    left_out = {one.shard for one in shards} - {one.shard for group in again.values() for one in group}
    assert not any(any(reachable(copy) for copy in shards[one].in_sync if copy != asked) for one in left_out)
