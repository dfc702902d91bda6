"""Group commit: all writes that wait while one sync runs share the next one. No timer: an idle replica commits at once.

`WriteQueue` is the policy (what may wait, what goes together), pure; `GroupCommit` is the thin shell that drives it. The
writes of one replica are committed in the order they came. A write that was admitted happens, whether its caller still waits
or not; a write that fails fails for everyone in its commit, but for want of resources: then each is tried by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shard_server.budget import ByteBudget
from vectorfleet import limits
from vectorfleet.errors import ResourceExhausted, Unavailable
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.telemetry.work import Work, current, shared

if TYPE_CHECKING:
    from shard_server.engine.state import Applied

QUEUE_BYTES_MAX: Final = 2 * limits.CALL_BYTES_MAX
QUEUE_WRITES_MAX: Final = 4096
COMMIT_BYTES_MAX: Final = limits.CALL_BYTES_MAX
"""What one commit holds in memory twice, as messages and as the log's batch."""


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """A write that waits for its commit."""

    mutation: storage_pb2.Mutation
    term: int
    size_bytes: int
    done: asyncio.Future[Applied]
    work: Work = field(default_factory=current)
    """Whose it is."""


class WriteQueue:
    """What waits for the next commit of one replica, in order."""

    def __init__(
        self,
        bytes_max: int = QUEUE_BYTES_MAX,
        writes_max: int = QUEUE_WRITES_MAX,
        commit_bytes_max: int = COMMIT_BYTES_MAX,
    ) -> None:
        self._bytes_max = bytes_max
        self._writes_max = writes_max
        self._commit_bytes_max = commit_bytes_max
        self._writes: deque[PendingWrite] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._writes)

    def add(self, write: PendingWrite) -> None:
        """Lets a write wait. Raises `ResourceExhausted` (OVERLOADED) where the queue is full; one write always fits."""
        full = self._bytes + write.size_bytes > self._bytes_max or len(self._writes) >= self._writes_max
        if self._writes and full:
            raise ResourceExhausted(f"{len(self._writes)} writes with {self._bytes} bytes wait already")
        self._writes.append(write)
        self._bytes += write.size_bytes

    def take(self) -> list[PendingWrite]:
        """Takes what goes into one commit: the longest run of one term within the commit's bytes; at least one write."""
        taken: list[PendingWrite] = []
        size = 0
        while self._writes:
            write = self._writes[0]
            if taken and (write.term != taken[0].term or size + write.size_bytes > self._commit_bytes_max):
                break
            taken.append(self._writes.popleft())
            size += write.size_bytes
        self._bytes -= size
        return taken


class GroupCommit:
    """Commits the writes of one replica. Used from one event loop."""

    def __init__(
        self,
        commit: Callable[[Sequence[storage_pb2.Mutation], int], Awaitable[list[Applied]]],
        budget: ByteBudget,
        queue: WriteQueue | None = None,
    ) -> None:
        """Makes an idle one.

        Args:
            commit: commits mutations under a term, all or none, off the event loop.
            budget: the node's ceiling on writes in memory, shared by all its replicas.
            queue: the policy.
        """
        self._commit = commit
        self._budget = budget
        self._queue = WriteQueue() if queue is None else queue
        self._drain: asyncio.Task[None] | None = None
        self._closed = False

    async def write(self, mutation: storage_pb2.Mutation, term: int) -> Applied:
        """Queues a write and waits until it is on disk.

        Raises:
            ResourceExhausted: the queue or the node's budget is full; nothing was written.
            Unavailable: it was closed; nothing was written.
            VectorfleetError: what the commit raised.
        """
        if self._closed:
            raise Unavailable("the replica is closing", reason="SHUTTING_DOWN")
        size_bytes = mutation.ByteSize()
        done: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        self._budget.take(size_bytes)
        try:
            self._queue.add(PendingWrite(mutation, term, size_bytes, done))
        except ResourceExhausted:
            self._budget.give(size_bytes)
            raise
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._run())
        return await done

    async def close(self) -> None:
        """Refuses new writes and waits until the admitted ones are committed."""
        self._closed = True
        if self._drain is not None:
            await asyncio.wait([self._drain])

    async def _run(self) -> None:
        while self._queue:
            await self._commit_next(self._queue.take())
        # No await between the check above and here: a write cannot come in between and find a task that has ended.
        self._drain = None

    async def _commit_next(self, writes: list[PendingWrite]) -> None:
        try:
            await self._commit_together(writes)
        finally:
            self._budget.give(sum(write.size_bytes for write in writes))

    async def _commit_together(self, writes: list[PendingWrite]) -> None:
        for write in writes:
            write.work.lap("queue")
        try:
            with shared("commit", [write.work for write in writes]):
                applied = await self._commit([write.mutation for write in writes], writes[0].term)
            for write, result in zip(writes, applied, strict=True):
                if not write.done.done():
                    write.done.set_result(result)
        except Exception as error:
            if isinstance(error, ResourceExhausted) and len(writes) > 1:
                # Perhaps only some of them are refused: on a full disk, a delete is taken where an upsert is not.
                for write in writes:
                    await self._commit_together([write])
                return
            for write in writes:
                if not write.done.done():
                    write.done.set_exception(error)
