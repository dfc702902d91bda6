"""What choice and hedging do to the tail: the router's own machines in a simulated cluster, in simulated time, from a seed.

Two nodes hold the same shard. A search takes about 4 ms there, and three in a hundred take 60 to 140 ms, whichever node it is;
one node may be slower than the other by a factor. Nothing queues. `python -m tests.unit.router.test_tail` prints the table of
docs/decisions/0019-tail.md.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from router.hedging import BURST, SHARE_MAX, Ask, GiveUp, HedgeBudget, Instruction, Race, Settle, late_after_s
from router.latency import Latency
from router.merge import ShardAnswer
from router.replica_choice import Standing, by_node, other_copies
from vectorfleet.cluster.shard_map import ShardAssignment

SEARCHES = 10_000
A_SECOND = 500
SHARD = ShardAssignment(0, 0, 2**64 - 1, 1, "a", ("a", "b"), ("a", "b"))
ANSWER = ShardAnswer(0, np.zeros(1, np.uint32), np.empty(0, np.float32), [])


@dataclass
class Node:
    slower: float
    latency: Latency = field(default_factory=Latency)
    outstanding: int = 0
    asked: int = 0


@dataclass
class Simulation:
    """Searches that come as a Poisson process to a router with or without each of its two means."""

    seed: int
    choice: bool
    hedging: bool
    slower: float = 1.0
    """Node a, the primary, beside b."""
    now_s: float = 0.0
    took_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arrivals, self.services, self.draw = (random.Random(f"{self.seed} {what}") for what in "asd")
        self.nodes = {"a": Node(self.slower), "b": Node(1.0)}
        self.budget = HedgeBudget()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self) -> Simulation:
        at_s = 0.0
        for _ in range(SEARCHES):
            at_s += self.arrivals.expovariate(A_SECOND)
            self._at(at_s, self._search)
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
        return self

    @property
    def extra(self) -> float:
        """Searches that were asked again, as a share."""
        return sum(node.asked for node in self.nodes.values()) / SEARCHES - 1

    def _at(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), happen))

    def _standing(self, name: str) -> Standing:
        node = self.nodes[name]
        return Standing(False, node.outstanding, node.latency.mean_s(self.now_s))

    def _search(self) -> None:
        first = next(iter(by_node([SHARD], self._standing, self.draw))) if self.choice else "a"

        def others(_: Collection[int]) -> dict[str, list[int]]:
            return {name: [0] for name in other_copies([SHARD], first, self._standing, self.draw)}

        race = Race(first, {0}, 1, self.budget, others)
        begun_s, asked_s = self.now_s, dict[str, float]()

        def ask(name: str) -> None:
            node = self.nodes[name]
            node.asked += 1
            node.outstanding += 1
            asked_s[name] = self.now_s
            slow = self.services.random() < 0.03
            took_s = self.services.uniform(0.06, 0.14) if slow else self.services.lognormvariate(-5.5, 0.25)
            self._at(self.now_s + took_s * node.slower, lambda: answered(name))

        def ended(name: str, error: str) -> None:
            self.nodes[name].outstanding -= 1
            self.nodes[name].latency.ended(self.now_s - asked_s.pop(name), error, self.now_s)

        def answered(name: str) -> None:
            if name in asked_s:  # else it was given up
                ended(name, "")
                carry_out(race.told(name, {0: ANSWER}))

        def carry_out(instructions: list[Instruction]) -> None:
            for instruction in instructions:
                match instruction:
                    case Ask(name, _, _):
                        ask(name)
                    case GiveUp(name):
                        ended(name, "CANCELLED")
                    case Settle():
                        self.took_s.append(self.now_s - begun_s)

        def late() -> None:
            if race.open:
                carry_out([*race.late()])

        ask(first)
        if self.hedging:
            self._at(self.now_s + late_after_s(self.nodes[first].latency, self.now_s), late)


def p_ms(simulation: Simulation, percent: float) -> float:
    return 1000 * float(np.percentile(simulation.took_s, percent))


def test_hedging_takes_the_tail_for_no_more_than_its_share() -> None:
    without, hedged = (Simulation(1, choice=True, hedging=hedging).run() for hedging in (False, True))
    assert len(hedged.took_s) == len(without.took_s) == SEARCHES
    assert p_ms(hedged, 99) < p_ms(without, 99) / 2
    assert p_ms(hedged, 50) < 1.1 * p_ms(without, 50)
    assert 0.01 < hedged.extra <= SHARE_MAX + BURST / SEARCHES


def test_the_choice_leaves_a_slow_node_and_tries_it_again() -> None:
    primary, chosen = (Simulation(1, choice, hedging=False, slower=5.0).run() for choice in (False, True))
    assert p_ms(chosen, 50) < p_ms(primary, 50) / 2
    assert chosen.nodes["b"].asked > 2 * chosen.nodes["a"].asked
    assert chosen.nodes["a"].asked > 0, "what is not known any more is tried again"


def table() -> list[str]:
    rows = []
    for slower in (1.0, 5.0):
        for choice, hedging in ((False, False), (False, True), (True, False), (True, True)):
            one = Simulation(1, choice, hedging, slower).run()
            means = " and ".join(["choice"] * choice + ["hedging"] * hedging) or "the primary alone"
            times = " | ".join(f"{p_ms(one, percent):.1f}" for percent in (50, 95, 99, 99.9))
            share = one.nodes["a"].asked / sum(node.asked for node in one.nodes.values())
            rows.append(f"| {slower:g} | {means} | {times} | {100 * one.extra:.1f} % | {100 * share:.0f} % |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
