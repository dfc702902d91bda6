"""Which copies of shards answer a read: pure functions.

It is not the way to the node (nodes.py) and keeps no state. Any in-sync copy may answer, since a read that must see a write
says so with its seqno. A shard of one copy costs nothing to choose for: its primary is named, whatever is known of it.

Of several copies two are drawn, and the better one is taken: the power of two choices (Mitzenmacher, 2001) spreads load
almost as well as looking at all of them, and keeps routers, which know only what they have asked themselves, from running to the
same node together.

The choice is made for each shard, and all shards of a node are then asked in one question. Since a question has a price of its
own, among nodes that have as little to do one that this read asks already is taken before one that is faster; and shards without
a choice come first, so that the others can join them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

from vectorfleet.cluster.shard_map import ShardAssignment


class Standing(NamedTuple):
    """What speaks against asking a node, the weightiest first."""

    quiet: bool
    """It was asked and has said nothing to anybody for longer than it takes as a rule."""
    outstanding: int
    """Queries that it has not answered yet."""
    typical_s: float
    """How long it takes lately; 0 where that is not known, which makes it worth a try."""


Standings: TypeAlias = Callable[[str], Standing | None]
"""Of a node by its id; None: it cannot be reached."""


def several_copies(shards: Sequence[ShardAssignment]) -> bool:
    """Whether any of the shards leaves a choice."""
    for shard in shards:  # noqa: SIM110 (every question comes by: a generator would be a call for each shard)
        if len(shard.in_sync) > 1:
            return True
    return False


def by_node(
    shards: Sequence[ShardAssignment], standings: Standings, draw: random.Random
) -> dict[str, list[ShardAssignment]]:
    """Groups shards by the node that should answer for them; "": nobody holds them yet.

    Where no copy can be reached the primary is named all the same: the caller then says of which node the shard is missing.
    """
    groups: dict[str, list[ShardAssignment]] = {}
    free = []
    for shard in shards:
        if len(shard.in_sync) > 1:
            free.append(shard)
        else:
            groups.setdefault(shard.primary, []).append(shard)
    for shard in free:
        node = _better(shard.in_sync, standings, groups, draw) or shard.primary
        groups.setdefault(node, []).append(shard)
    return groups


def read_replica(shard: ShardAssignment, standings: Standings, draw: random.Random) -> str:
    """Returns the node that should answer for one shard, or "" while it has none."""
    return next(iter(by_node([shard], standings, draw)))


def other_copies(
    shards: Sequence[ShardAssignment], asked: str, standings: Standings, draw: random.Random
) -> dict[str, list[ShardAssignment]]:
    """Groups those of the shards that another node than the one that was asked can answer for, as `by_node` does."""
    groups: dict[str, list[ShardAssignment]] = {}
    for shard in shards:
        node = _better([copy for copy in shard.in_sync if copy != asked], standings, groups, draw)
        if node is not None:
            groups.setdefault(node, []).append(shard)
    return groups


def _better(copies: Sequence[str], standings: Standings, asked: Collection[str], draw: random.Random) -> str | None:
    """The better of two of the copies that can be reached; None: none can."""
    known = {node: standing for node in copies if (standing := standings(node)) is not None}
    two = known if len(known) <= 2 else draw.sample(list(known), 2)

    def against(node: str) -> tuple[bool, int, bool, float]:
        standing = known[node]
        return standing.quiet, standing.outstanding, node not in asked, standing.typical_s

    return min(two, key=against, default=None)
