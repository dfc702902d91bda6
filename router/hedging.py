"""When a question to a node is put to other copies of its shards as well: pure state machines, without I/O.

A question whose answer takes longer than its node takes for 95 in 100, or that failed for a reason which another copy need not
share, is asked once more of the other in-sync copies (Dean and Barroso, The Tail at Scale, CACM 2013). The first good answer
of each shard counts, whoever gives it. Events come in and instructions go out, which hedged_asking.py carries out; the time is an
argument.

What this may cost is bounded by tokens, as retries are in gRPC (proposal A6): a cluster that is slow because it has too much
to do would otherwise be given more.

Invariants: a question is asked at most once more; a shard is settled once, and never as failed while somebody who was asked
may still answer for it, so that no second question costs coverage; a shard of one copy is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from router.circuit import SUSPECT_AFTER_S
from router.latency import Latency
from router.merge import ShardAnswer
from vectorfleet.errors import VectorfleetError

SHARE_MAX: Final = 0.05
"""Of the queries that are asked of nodes: so many more may be asked once again."""
BURST: Final = 64
"""Queries that may be asked again at once, after a time in which none were. Of a question with more, only failures are asked
again: that it takes longer than others lies in it, and not in its node."""
AFTER_MIN_S: Final = 0.005
"""Below that, a second question costs more than it saves."""
AFTER_MAX_S: Final = SUSPECT_AFTER_S
"""A node that is silent for so long is late, whatever is known of it."""
KNOWN_MIN: Final = 20
"""Searches of which a 95th percentile can be told."""

SLOW: Final = "slow"
ERROR: Final = "error"
CAUSES: Final = (SLOW, ERROR)
OUTCOMES: Final = ("won", "lost", "refused")

_OF_ONE_COPY: Final = frozenset(
    {"DATA_LOSS", "INTERNAL", "OVERLOADED", "SHARD_UNAVAILABLE", "SHUTTING_DOWN", "UNREACHABLE"}
)
"""Reasons that another copy need not share. Not among them: what is the caller's fault, what a newer map mends, a time that
is up."""

ShardOutcome: TypeAlias = ShardAnswer | VectorfleetError


def late_after_s(latency: Latency, now_s: float) -> float:
    """How long to wait for a node before others are asked: its 95th percentile, within reason."""
    if latency.count(now_s) < KNOWN_MIN:
        return AFTER_MAX_S
    return min(AFTER_MAX_S, max(AFTER_MIN_S, latency.quantile_s(0.95, now_s)))


@dataclass(slots=True)
class HedgeBudget:
    """Tokens: one for each query that is asked again. Full at the start.

    A full bucket lets a question of any size pass, and owes what it lacks: else the largest would never be asked again.
    """

    tokens: float = BURST

    def earn(self, queries: int) -> None:
        """A node was asked so many queries."""
        self.tokens = min(BURST, self.tokens + SHARE_MAX * queries)

    def spend(self, queries: int) -> bool:
        """Whether so many may be asked again; they are paid for if so."""
        if self.tokens < min(queries, BURST):
            return False
        self.tokens -= queries
        return True


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a node for these shards."""

    node: str
    shards: Sequence[int]
    cause: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Cancel the question to a node: nothing that it could still say is needed."""

    node: str


@dataclass(frozen=True, slots=True)
class Settle:
    """This is what counts for a shard: the answer, or the failure."""

    shard: int
    node: str
    outcome: ShardOutcome


Instruction: TypeAlias = Ask | GiveUp | Settle


@dataclass(slots=True)
class Race:
    """One question that has left for a node, and what becomes of it.

    Attributes:
        first: the node.
        open: shards that nobody has settled yet.
        queries: of the question.
        budget: of this router.
        others: groups shards by another node that may be asked for them; leaves out those that have none.
        asked_again: why, and how that went: "won" where it settled a shard well; empty while it was not.
    """

    first: str
    open: set[int]
    queries: int
    budget: HedgeBudget
    others: Callable[[Collection[int]], Mapping[str, Sequence[int]]]
    asked_again: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, set[int]] = field(default_factory=dict)
    """Node → shards that it was asked for and has not answered."""
    _failed: dict[int, tuple[str, VectorfleetError]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The question leaves."""
        self._waiting[self.first] = set(self.open)
        self.budget.earn(self.queries)

    def late(self) -> list[Ask]:
        """The node is later than it is as a rule: others are asked, where there are some for all that is open."""
        if self.queries > BURST or self._second_asked:
            return []
        groups = self.others(self.open)
        return self._ask_again(SLOW, groups) if sum(map(len, groups.values())) == len(self.open) else []

    def told(self, node: str, outcomes: Mapping[int, ShardOutcome]) -> list[Instruction]:
        """A node answered, or failed, for each shard that it was asked for. What comes too late is not looked at."""
        instructions: list[Instruction] = []
        stranded = []
        for shard in self._waiting.pop(node, set()) & self.open:
            outcome = outcomes[shard]
            if not isinstance(outcome, VectorfleetError):
                instructions.append(self._settle(shard, node, outcome))
                continue
            known = self._failed.get(shard)
            if known is None or known[1].reason != "STALE_SHARD_MAP":  # which the caller can mend
                self._failed[shard] = node, outcome
            if not any(shard in shards for shards in self._waiting.values()):
                stranded.append(shard)
        mendable = [shard for shard in stranded if self._failed[shard][1].reason in _OF_ONE_COPY]
        if mendable and not self._second_asked:
            instructions += self._ask_again(ERROR, self.others(mendable))
        asked = set().union(*self._waiting.values())
        instructions += [self._settle(shard, *self._failed[shard]) for shard in stranded if shard not in asked]
        return instructions + self._needless()

    @property
    def _second_asked(self) -> bool:
        return any(outcome != "refused" for outcome in self.asked_again.values())

    def _ask_again(self, cause: str, groups: Mapping[str, Sequence[int]]) -> list[Ask]:
        if not groups:
            return []
        if not self.budget.spend(self.queries):
            self.asked_again[cause] = "refused"
            return []
        self.asked_again[cause] = "lost"  # so far
        for node, shards in groups.items():
            self._waiting[node] = set(shards)
        return [Ask(node, shards, cause) for node, shards in groups.items()]

    def _settle(self, shard: int, node: str, outcome: ShardOutcome) -> Settle:
        self.open.remove(shard)
        if node != self.first and not isinstance(outcome, VectorfleetError):
            for cause, so_far in self.asked_again.items():
                if so_far == "lost":
                    self.asked_again[cause] = "won"
        return Settle(shard, node, outcome)

    def _needless(self) -> list[Instruction]:
        needless = [node for node, shards in self._waiting.items() if not shards & self.open]
        for node in needless:
            del self._waiting[node]
        return [GiveUp(node) for node in needless]
