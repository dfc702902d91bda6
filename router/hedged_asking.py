"""The shell of hedging.py: carries races out with the errands of a fan-out and the event loop's clock.

Only for questions about shards that have several copies; the others are asked without it.

Invariant: once a race is over, or nobody waits for it, it has no timer and asks nobody.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from router.hedging import Ask, GiveUp, HedgeBudget, Instruction, Race, ShardOutcome, late_after_s
from router.nodes import Node, NodePool
from router.replica_choice import other_copies
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ShardAssignment


class Errand(Protocol):
    """A question to one node."""

    node_id: str
    node: Node
    shards: Sequence[ShardAssignment]
    queries: int
    usual: bool
    """The time that it takes says something of the node: what is long by its nature does not."""

    def give_up(self) -> None:
        """Ends it: nothing is told of it any more, and the node learns of that."""


E = TypeVar("E", bound=Errand)


@dataclass(frozen=True, slots=True)
class Asking(Generic[E]):
    """What races need of a fan-out."""

    ask: Callable[[E, str, Sequence[ShardAssignment], str], E]
    """Asks another node for some shards of an errand; the last argument says why (`hedging.CAUSES`)."""
    settle: Callable[[E, Mapping[int, ShardOutcome]], None]
    """Takes what counts for some shards, from the errand that brought it."""
    counted: Callable[[str, str], None]
    """Is told why others were asked as well, and how that went (`hedging.OUTCOMES`)."""


class Hedges(Generic[E]):
    """Of one router: one budget for all."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool, asking: Asking[E], draw: random.Random) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._asking = asking
        self._draw = draw
        self._budget = HedgeBudget()

    def race(self, first: E) -> Hedge[E]:
        """Begins the race of an errand that leaves now: whoever hears of its outcome tells the race."""
        shards = {shard.shard: shard for shard in first.shards}

        def others(numbers: Collection[int]) -> dict[str, list[int]]:
            standings = self._nodes.standings(self._coordinator.state)
            groups = other_copies([shards[number] for number in numbers], first.node_id, standings, self._draw)
            return {node: [shard.shard for shard in group] for node, group in groups.items()}

        race = Race(first.node_id, set(shards), first.queries, self._budget, others)
        patience_s = late_after_s(first.node.latency, time.monotonic()) if first.usual else None
        return Hedge(race, first, shards, self._asking, patience_s)


class Hedge(Generic[E]):
    """One race, and the errands that are in it."""

    def __init__(
        self, race: Race, first: E, shards: Mapping[int, ShardAssignment], asking: Asking[E], patience_s: float | None
    ) -> None:
        """Begins with the first errand, which is late after `patience_s`; None: never."""
        self._race = race
        self._errands = {first.node_id: first}
        self._first = first
        self._shards = shards
        self._asking = asking
        self._timer = None if patience_s is None else asyncio.get_running_loop().call_later(patience_s, self._late)

    def told(self, node_id: str, outcomes: Mapping[int, ShardOutcome]) -> None:
        """A node answered, or failed, for each shard that it was asked for."""
        self._carry_out(self._race.told(node_id, outcomes))
        if not self._race.open:
            self.end()

    def end(self) -> None:
        """The race is over, or nobody waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asked_again, self._race.asked_again = self._race.asked_again, {}
        for cause, outcome in asked_again.items():
            self._asking.counted(cause, outcome)

    def _late(self) -> None:
        self._carry_out(self._race.late())

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Ask):
                shards = [self._shards[number] for number in instruction.shards]
                self._errands[instruction.node] = self._asking.ask(
                    self._first, instruction.node, shards, instruction.cause
                )
            elif isinstance(instruction, GiveUp):
                self._errands[instruction.node].give_up()
            else:
                self._asking.settle(self._errands[instruction.node], {instruction.shard: instruction.outcome})
