"""Which copy of a shard answers a read: a pure function.

It is not the way to the node (nodes.py) and keeps no state. Today a shard has one copy; with more, any in-sync copy may
answer, since a read that must see a write says so with its seqno.
"""

from __future__ import annotations

from collections.abc import Callable

from vectorfleet.cluster.shard_map import ShardAssignment


def read_replica(assignment: ShardAssignment, reachable: Callable[[str], bool]) -> str:
    """Returns the node that should answer for a shard, or "" while the shard has none.

    The primary comes first, then the other in-sync copies. Where no copy is thought reachable the primary is named all
    the same: the caller then says of which node the shard is missing.
    """
    if len(assignment.in_sync) <= 1:
        return assignment.primary
    candidates = (assignment.primary, *(node for node in assignment.in_sync if node != assignment.primary))
    return next((node for node in candidates if node and reachable(node)), assignment.primary)
