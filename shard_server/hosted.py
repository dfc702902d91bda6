"""One replica as this node holds it: loading, serving or failed, with its queue of writes.

The engine's replica blocks; this wraps it for the event loop. A failed replica stays, and answers with the reason. Invariant:
the engine is closed only after the last thread has left it, and nobody enters it after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from shard_server.budget import ByteBudget
from shard_server.engine.stages import Lap
from shard_server.group_commit import GroupCommit
from shard_server.threads import Gate, WorkPool
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.errors import DataLoss, DeadlineExceeded, Unavailable, VectorfleetError
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.telemetry.work import current
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb

if TYPE_CHECKING:
    from shard_server.backup.transfer import Transfer
    from shard_server.engine.index import Codebook
    from shard_server.engine.replica import Replica
    from shard_server.engine.state import Applied

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class HostedReplica:
    """A shard's replica on this node. Used from one event loop; `run` takes the engine's calls to threads."""

    def __init__(
        self,
        record: CollectionRecord,
        assignment: ShardAssignment,
        commit_pool: WorkPool,
        write_budget: ByteBudget,
        on_commit: Callable[[HostedReplica], None],
    ) -> None:
        """Starts as loading; `serve` or `fail` ends that.

        Args:
            record: its collection; the host replaces it as the shard map changes.
            assignment: its shard, likewise.
            commit_pool: where commits run.
            write_budget: the node's ceiling on writes in memory.
            on_commit: called after each commit.
        """
        self.record = record
        self.assignment = assignment
        self.status = cluster_pb.REPLICA_STATUS_LOADING
        self.message = ""
        self.codebook: Codebook | None = None
        """The one that it was given last."""
        self.transfer: Transfer | None = None
        """How far it has come from a backup, since this node started."""
        self._commit_pool = commit_pool
        self._on_commit = on_commit
        self._commits = GroupCommit(self._commit, write_budget)
        self._replica: Replica | None = None
        self._failure: VectorfleetError | None = None
        self._gate = Gate()
        self._opened = asyncio.Event()
        self._applied = asyncio.Event()

    @property
    def uid(self) -> str:
        """The collection's uid."""
        return self.record.uid

    @property
    def shard(self) -> int:
        """The shard's number."""
        return self.assignment.shard

    @property
    def name(self) -> str:
        """For logs and messages."""
        return f"shard {self.shard} of collection {self.record.name} ({self.uid})"

    @property
    def serving(self) -> bool:
        """Whether it can be read."""
        return self.status == cluster_pb.REPLICA_STATUS_SERVING

    @property
    def failure_reason(self) -> str:
        """Why it failed, as a reason of docs/errors.md; "": it has not."""
        return "" if self._failure is None else self._failure.reason

    def serve(self, replica: Replica) -> None:
        """The engine has opened it."""
        self._replica = replica
        self._failure = None
        self.message = ""
        self.status = cluster_pb.REPLICA_STATUS_SERVING
        self._opened.set()

    def fail(self, error: VectorfleetError) -> None:
        """It cannot be opened, or its files are damaged; every call gets this reason, unless `serve` ends that."""
        self._failure = copy(error)  # without its stack, whose frames hold the store's iterators and snapshots
        self.message = str(error)
        self.status = cluster_pb.REPLICA_STATUS_FAILED
        self._opened.set()

    async def opened(self, timeout_s: float | None = None) -> None:
        """Waits until it serves or has failed.

        Raises:
            Unavailable: it is still loading after `timeout_s`.
            VectorfleetError: it has failed, for this reason.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError:
            raise Unavailable(f"{self.name} is still loading") from None
        if self._failure is not None:
            raise copy(self._failure)

    async def run(
        self,
        pool: WorkPool,
        deadline: float | None,
        work: Callable[Concatenate[Replica, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Calls `work(replica, …)` in a thread of `pool`.

        Args:
            pool: where.
            deadline: of `time.monotonic()`, until which it must have started; None: none.
            work: may be an unbound method of the engine's replica.

        Raises:
            Unavailable: the replica is loading or closing.
            DataLoss: its files are damaged, as was found now or before: it is out of service.
            VectorfleetError: what the pool or the work raised.
        """
        replica = self._replica
        if self._failure is not None:
            # A copy: an exception keeps every stack that it was ever raised through, and the requests in them.
            raise copy(self._failure)
        if replica is None:
            raise Unavailable(f"{self.name} is not open")

        def call() -> T:
            if not self._gate.enter():
                raise Unavailable(f"{self.name} is closing", reason="STALE_SHARD_MAP")
            try:
                return work(replica, *args, **kwargs)
            finally:
                self._gate.leave()

        try:
            return await pool.run_until(deadline, call)
        except DataLoss as error:
            self.note_damage(error)
            raise

    def note_damage(self, error: DataLoss) -> None:
        """Goes out of service for damage of its own files, not of a backup's: rather no answer than a wrong one."""
        if error.reason == "DATA_LOSS":
            _log.error("%s is out of service: %s", self.name, error)
            self.fail(error)

    async def write(self, mutation: storage_pb2.Mutation, term: int) -> Applied:
        """Commits a mutation together with those that wait; see `GroupCommit.write`."""
        return await self._commits.write(mutation, term)

    async def wait_applied(self, seqno: int, timeout_s: float) -> None:
        """Waits until searches see the write `seqno`. Raises `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._replica is None or self._replica.applied_seqno < seqno:
                    await self._applied.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.name} has not applied write {seqno} yet") from None

    async def close(self, pool: WorkPool, timeout_s: float) -> bool:
        """Commits what was admitted, waits for threads inside, closes the engine.

        Returns:
            False where it could not be closed in time: a thread is still inside. Nothing acknowledged is lost by that.
        """
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._commits.close()
        except TimeoutError:
            return False
        if self._replica is None:
            return self._failure is not None
        if not await pool.run(self._gate.shut, until - time.monotonic()):
            return False
        await pool.run(self._replica.close)
        return True

    async def _commit(self, mutations: Sequence[storage_pb2.Mutation], term: int) -> list[Applied]:
        applied = await self.run(self._commit_pool, None, _commit, mutations, term, current().lap)
        self._applied.set()
        self._applied = asyncio.Event()
        self._on_commit(self)
        return applied


def _commit(replica: Replica, mutations: Sequence[storage_pb2.Mutation], term: int, lap: Lap) -> list[Applied]:
    lap("thread")
    return replica.commit(mutations, term, lap)
