"""The newest shard map that this router can get, when it has reason to believe that its own is old."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from router.deadline import Deadline
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState

REFRESH_S: Final = 1.0


async def newer_state(
    coordinator: Coordinator, epoch: int, deadline: Deadline, patience_s: float = REFRESH_S
) -> ClusterState:
    """Waits until the shard map is newer than `epoch`, and returns it; after `patience_s`, or half of the time that is
    left, it returns the one that there is: the node that called our map old may have been the one that was behind.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(patience_s, deadline.remaining_s() / 2)):
            return await coordinator.changed(epoch)
    return coordinator.state
