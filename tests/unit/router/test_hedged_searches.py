"""Searches of shards with two in-sync copies: real gRPC to nodes that are slow, silent, refuse or are gone.

No release keeps a second copy yet: here both nodes are simply given the same points, and the map says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from router.deadline import Deadline
from router.fanout import Answers, Fanout, Question
from router.hedging import BURST, ERROR, SHARE_MAX, SLOW
from router.nodes import Node, NodePool
from router.validation import SearchOptions
from tests.unit.router.fake_node import FakeNode, fake_nodes
from vectorfleet import errors
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.telemetry.work import Work
from vectorfleet.v1 import types_pb2

DIM, POINTS, PATIENCE_S = 4, 10, 60.0


@dataclass
class Copies:
    """A fan-out over fake nodes that all hold all shards."""

    cluster: StaticCluster
    nodes: dict[str, FakeNode]
    pool: NodePool
    record: CollectionRecord
    fanout: Fanout
    hedges: list[tuple[str, str]] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return sum(request.query_count for node in self.nodes.values() for request in node.searches)

    @property
    def ways(self) -> list[Node]:
        return [way for name in self.nodes if (way := self.pool.known(name)) is not None]

    def question(self, queries: int = 1, *, exact: bool = False, k: int = 3) -> Question:
        return Question(self.record, np.zeros((queries, DIM), np.float32), SearchOptions(k=k, exact=exact), {})

    async def ask(self, queries: int = 1, *, exact: bool = False, k: int = 3) -> Answers:
        async with asyncio.timeout(PATIENCE_S):
            return await self.fanout.answer(self.question(queries, exact=exact, k=k), Deadline.after(PATIENCE_S))


@asynccontextmanager
async def copies(*names: str, shards: int = 2) -> AsyncIterator[Copies]:
    """The first node is the primary of all shards."""
    rng = np.random.default_rng(5)
    async with AsyncExitStack() as stack:
        cluster = StaticCluster()
        nodes = await fake_nodes(stack, cluster, *names)
        step = 2**64 // shards
        held = tuple(
            ShardAssignment(number, number * step, (number + 1) * step - 1, 1, names[0], names, names)
            for number in range(shards)
        )
        record = CollectionRecord("c", "u", DIM, types_pb2.METRIC_L2, held)
        cluster.change(collections={"c": record})
        for number in range(shards):
            points = {f"{number}-{row}": (rng.random(DIM, np.float32).tobytes(), b"", 1) for row in range(POINTS)}
            for node in nodes.values():
                node.shards["u", number].update(points)
        coordinator = StaticCoordinator(cluster)
        pool = NodePool()
        stack.push_async_callback(pool.close)
        following = asyncio.create_task(pool.follow(coordinator))
        stack.callback(following.cancel)
        under = Copies(
            cluster, nodes, pool, record, Fanout(coordinator, pool, lambda *hedge: under.hedges.append(hedge))
        )
        yield under


def reasons(answers: Answers) -> dict[int, str]:
    return {shard: missing.reason for shard, missing in answers.missing.items()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (gRPC decides it, no event of ours)
            await asyncio.sleep(0.01)


async def test_a_slow_copy_is_hedged_and_its_work_ends_at_the_node() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].busy.clear()
        with Work("a search") as work:
            answers = await under.ask()
        assert sorted(answers.answered) == [0, 1]
        assert answers.missing == {}
        assert under.hedges == [(SLOW, "won")]
        await until(lambda: len(under.nodes["n1"].cancelled) == 1)
        assert [(part.facts["node"], part.facts.get("hedge"), part.error) for part in work.parts] == [
            ("n1", None, "CANCELLED"),
            ("n2", SLOW, ""),
        ]
        assert [node.outstanding for node in under.ways] == [0, 0]


async def test_a_silent_copy_costs_no_coverage() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].gate.clear()  # it answers nothing, not even a probe
        whole = await under.ask()
        assert (len(whole.answered), under.hedges) == (2, [(SLOW, "won")])
        for answers in await asyncio.gather(*(under.ask() for _ in range(50))):
            assert len(answers.answered) == 2
        assert len(under.nodes["n1"].searches) == 1, "a node that is silent is asked for nothing more"
        node = under.pool.known("n1")
        assert node is not None
        await until(lambda: node.circuit.open)
        under.nodes["n1"].gate.set()
        await until(lambda: not node.circuit.open)


async def test_many_searches_that_wait_for_a_copy_when_it_falls_silent_lose_nothing() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].gate.clear()
        every = await asyncio.gather(*(under.ask() for _ in range(BURST)))
        assert [len(answers.answered) for answers in every] == [2] * BURST
        assert len(under.nodes["n1"].searches) >= 1
        assert set(under.hedges) == {(SLOW, "won")}


async def test_a_search_that_is_long_by_its_nature_is_not_hedged_and_others_avoid_its_node() -> None:
    async with copies("n1", "n2") as under:
        one, two = under.nodes.values()
        one.busy.clear()
        long = asyncio.create_task(under.ask(exact=True))
        await until(lambda: len(one.searches) == 1)
        for _ in range(10):
            assert len((await under.ask()).answered) == 2
        assert len(two.searches) == 10, "who has less to do is asked"
        two.busy.clear()
        usual = asyncio.create_task(under.ask())
        await until(lambda: len(one.searches) == 2)
        # That one is hedged, though it came later.
        assert [request.exact for request in one.searches] == [True, False]
        assert not any(request.exact for request in two.searches)
        one.busy.set()
        assert len((await long).answered) == len((await usual).answered) == 2


async def test_a_large_question_that_fails_is_asked_again_and_given_up_like_a_small_one() -> None:
    large = 2_000
    async with copies("n1", "n2") as under:
        one, two = under.nodes.values()
        one.refuse[1] = errors.Unavailable("loading", reason="SHARD_UNAVAILABLE")
        whole = await under.ask(queries=BURST, k=large)
        assert (sorted(whole.answered), under.hedges) == ([0, 1], [(ERROR, "won")])
        two.busy.clear()
        leaving = asyncio.create_task(
            under.fanout.answer(under.question(BURST + 1, k=large), Deadline.after(PATIENCE_S))
        )
        one.busy.clear()
        await until(lambda: any(request.query_count > BURST for node in (one, two) for request in node.searches))
        leaving.cancel()
        await until(lambda: len(one.cancelled) + len(two.cancelled) == 1)
        assert [node.outstanding for node in under.ways] == [0, 0]


async def test_most_searches_go_to_the_faster_copy() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].lag_s = lambda: 0.05
        for _ in range(60):
            assert len((await under.ask()).answered) == 2
        assert len(under.nodes["n2"].searches) > 30


async def test_a_shard_that_fails_on_one_copy_is_answered_by_the_other() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].refuse[1] = errors.DataLoss("a file is damaged")
        answers = await under.ask()
        assert sorted(answers.answered) == [0, 1]
        assert [target.shard for target in under.nodes["n2"].searches[0].targets] == [1]
        assert under.hedges == [(ERROR, "won")]


async def test_a_node_that_is_gone_is_replaced_at_once() -> None:
    async with copies("n1", "n2") as under:
        nodes = {**under.cluster.state.nodes, "n1": NodeInfo("n1", "127.0.0.1:1")}
        under.cluster.change(nodes=nodes)
        answers = await under.ask()
        assert (sorted(answers.answered), under.hedges) == ([0, 1], [(ERROR, "won")])


async def test_what_is_the_questions_own_fault_is_asked_once() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].queries_max = 1
        answers = await under.ask(queries=2)
        assert set(reasons(answers).values()) == {"RESPONSE_TOO_LARGE"}
        assert (len(under.nodes["n2"].searches), under.hedges) == (0, [])


async def test_a_second_question_never_costs_what_the_first_one_brought() -> None:
    async with copies("n1", "n2") as under:
        under.nodes["n1"].refuse[1] = errors.Unavailable("loading", reason="SHARD_UNAVAILABLE")
        under.nodes["n2"].busy.clear()
        answers = Answers(2, lambda: None)
        with Work("a search") as work:
            under.fanout.ask(under.question(), answers, Deadline.after(PATIENCE_S), work)
        await until(lambda: bool(under.nodes["n2"].searches))
        assert sorted(answers.answered) == [0], "it is there when the caller can wait no longer"
        answers.give_up()
        await until(lambda: len(under.nodes["n2"].cancelled) == 1)
        assert under.hedges == [(ERROR, "lost")]
        assert [node.outstanding for node in under.ways] == [0, 0]


async def test_nobody_is_asked_for_a_caller_who_has_gone() -> None:
    async with copies("n1", "n2") as under:
        for node in under.nodes.values():
            node.busy.clear()
        leaving = asyncio.create_task(under.ask())
        await until(lambda: under.asked == 1)
        leaving.cancel()
        late = asyncio.create_task(under.ask())
        await until(lambda: under.asked == 3)
        for node in under.nodes.values():
            node.busy.set()
        assert len((await late).answered) == 2
        assert [cause for cause, _ in under.hedges] == [SLOW], "the third was asked for the second, which came later"


async def test_both_copies_fail_and_the_answer_says_of_which_node() -> None:
    async with copies("n1", "n2") as under:
        for node in under.nodes.values():
            node.refuse[1] = errors.DataLoss(f"a file of {node.node_id}")
        answers = await under.ask()
        assert reasons(answers) == {1: "DATA_LOSS"}
        assert "node n2: a file of n2" in answers.missing[1].message
        assert under.hedges == [(ERROR, "lost")]


async def test_a_thousand_searches_that_are_all_late_ask_again_for_no_more_than_their_share() -> None:
    searches = 1_000
    async with copies("n1", "n2", shards=1) as under:
        for node in under.nodes.values():
            node.busy.clear()
        crowd = [asyncio.create_task(under.ask()) for _ in range(searches)]
        await until(lambda: under.asked >= searches + BURST)
        for node in under.nodes.values():
            node.busy.set()
        assert all(len(answers.answered) == 1 for answers in await asyncio.gather(*crowd))
        assert under.asked <= searches + BURST + SHARE_MAX * searches
        assert under.hedges.count((SLOW, "refused")) == 2 * searches - under.asked


async def test_a_thousand_searches_that_all_fail_ask_again_for_no_more_than_their_share() -> None:
    searches = 1_000
    async with copies("n1", "n2", shards=1) as under:
        for node in under.nodes.values():
            node.refuse[0] = errors.ResourceExhausted("busy")
        for _ in range(searches // 20):
            await asyncio.gather(*(under.ask() for _ in range(20)))
        assert searches + BURST < under.asked <= searches + BURST + SHARE_MAX * searches
        assert under.hedges.count((ERROR, "refused")) == 2 * searches - under.asked


async def test_one_copy_is_asked_once_and_nothing_is_counted() -> None:
    async with copies("n1", shards=2) as under:
        under.nodes["n1"].refuse[1] = errors.Unavailable("loading", reason="SHARD_UNAVAILABLE")
        answers = await under.ask()
        assert (sorted(answers.answered), reasons(answers)) == ([0], {1: "SHARD_UNAVAILABLE"})
        assert (len(under.nodes["n1"].searches), under.hedges) == (1, [])
