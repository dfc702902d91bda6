"""Which replicas this node holds: follows the shard map, opens what is assigned, closes what no longer is.

`apply` compares a cluster state with what is held and starts the differences as tasks; applying a state twice changes
nothing. A replica that cannot be opened stays, failed, and answers with a reason; after a shortage, of room or else, it is tried
again. Files are removed only of collections that the state names as deleted: one that is merely absent keeps them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shard_server.backup.transfer import Transfer
from shard_server.budget import ByteBudget
from shard_server.codebooks import Codebooks
from shard_server.data_dir import DataDir
from shard_server.engine import files
from shard_server.hosted import HostedReplica
from shard_server.peers import Peers
from shard_server.tasks import TaskKeeper
from shard_server.threads import WorkPool
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.errors import DataLoss, InternalError, ResourceExhausted, Unavailable, VectorfleetError

if TYPE_CHECKING:
    from shard_server.engine.index import Codebook
    from shard_server.engine.replica import Replica

Key = tuple[str, int]
Opener = Callable[[Path, CollectionRecord, int, "Sequence[Codebook]"], "Replica"]
"""(directory, collection, shard, codebooks, the current one last) → replica; blocks."""
Restorer = Callable[[CollectionRecord, int, Path, Transfer], Awaitable[int]]
"""(collection, shard, directory, progress) → the last seqno that the directory's replica holds."""

MAP_WAIT_S: Final = 2.0
"""How long a call waits for a shard map as new as its sender's."""
CLOSE_TIMEOUT_S: Final = 10.0
RETRY_FIRST_S: Final = 0.25
RETRY_MAX_S: Final = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostPools:
    """Where a host's blocking work runs."""

    lifecycle: WorkPool
    """Opening and closing."""
    commit: WorkPool


class ReplicaHost:
    """The replicas of one node. Used from one event loop."""

    def __init__(
        self,
        data: DataDir,
        open_replica: Opener,
        restore: Restorer,
        codebooks: Codebooks,
        peers: Peers,
        pools: HostPools,
        write_budget: ByteBudget,
        on_work: Callable[[HostedReplica], None],
    ) -> None:
        """Holds nothing yet.

        Args:
            data: the node's folder and identity.
            open_replica: opens or creates one, in a thread.
            restore: fetches the files of one from a backup.
            codebooks: what it hands to them.
            peers: channels, of which those to vanished nodes are closed.
            pools: threads.
            write_budget: the node's ceiling on writes in memory.
            on_work: called when a replica may have background work: opened, written to, or with a new codebook.
        """
        self.node_id = data.node_id
        self._data = data
        self._open_replica = open_replica
        self._restore = restore
        self._codebooks = codebooks
        self._peers = peers
        self._pools = pools
        self._write_budget = write_budget
        self._on_work = on_work
        self._state = ClusterState()
        self._held: dict[Key, HostedReplica] = {}
        self._changed = asyncio.Event()
        self._tasks = TaskKeeper()
        self._last_step: dict[Key, asyncio.Task[None]] = {}
        self._codebook_tasks: dict[str, asyncio.Task[None]] = {}
        self._saved: dict[str, CollectionRecord] = {}
        self._on_disk: set[str] = set()
        self._names: dict[str, str] = {}
        self._unknown: tuple[str, ...] = ()
        self._closing = False

    # ------------------------------------------------------------------ following the shard map

    @property
    def state(self) -> ClusterState:
        """The cluster state that this node acts on."""
        return self._state

    @property
    def replicas(self) -> list[HostedReplica]:
        """All that are held, in any status."""
        return list(self._held.values())

    @property
    def unknown_collections(self) -> tuple[str, ...]:
        """Names of collections whose replicas are on disk, while the shard map knows neither them nor of their deletion."""
        return self._unknown

    async def open_known(self) -> None:
        """Opens what this node held when it last ran, so that it serves even while the coordinator is away."""
        self._on_disk = await self._pools.lifecycle.run(self._data.stored_uids)
        known = await self._pools.lifecycle.run(self._data.known_collections)
        self._names = {record.uid: record.name for record in known}
        self.apply(ClusterState(collections={record.name: record for record in known}))

    async def follow(self, coordinator: Coordinator) -> None:
        """Applies the coordinator's states for ever; call after its `start`."""
        while True:
            state = coordinator.state
            self.apply(state)
            await self._peers.keep_only({node.address for node in state.nodes.values()})
            await coordinator.changed(state.epoch)

    def join(self, state: ClusterState) -> None:
        """Tells the folder what the shard map gives to this node before it registers; see `DataDir.join`. Blocks on the disk.

        A replica that is being restored is fetched again wherever its files are missing: none is lost.
        """
        mine = (
            (record.uid, shard.shard)
            for record in state.collections.values()
            if record.restoring is None
            for shard in record.shards
            if self.node_id in shard.replicas
        )
        self._data.join(mine)

    def apply(self, state: ClusterState) -> None:
        """Starts whatever makes this node hold what `state` assigns to it."""
        if self._closing:
            return
        self._state = state
        wanted = {
            (record.uid, shard.shard): (record, shard)
            for record in state.collections.values()
            for shard in record.shards
            if self.node_id in shard.replicas
        }
        for key in self._held.keys() - wanted.keys():
            self._start_closing(key)
        for key, (record, shard) in wanted.items():
            held = self._held.get(key)
            if held is None:
                self._start_opening(key, record, shard)
            else:
                held.record, held.assignment = record, shard
        for uid in {uid for uid, _ in wanted}:
            self._follow_codebook(uid)
        for uid in state.deleted_uids & self._on_disk:
            self._on_disk.discard(uid)
            self._tasks.spawn(self._remove(uid), f"removing collection {uid}")
        self._look_for_unknown(state)
        self._changed.set()
        self._changed = asyncio.Event()

    def _look_for_unknown(self, state: ClusterState) -> None:
        known = {record.uid for record in state.collections.values()} | state.deleted_uids
        unknown = tuple(sorted(name for uid, name in self._names.items() if uid not in known))
        if unknown and unknown != self._unknown:
            _log.warning(
                "the shard map knows nothing of %s, of which replicas are on disk here; was etcd's data lost? They are kept",
                ", ".join(unknown),
            )
        self._unknown = unknown

    # ------------------------------------------------------------------ finding a replica

    async def replica_for(
        self, uid: str, shard: int, epoch: int, *, timeout_s: float, term: int | None = None
    ) -> HostedReplica:
        """Finds a replica that serves.

        Args:
            uid: of the collection.
            shard: its number.
            epoch: of the caller's shard map; this node's map may have to catch up with it first.
            timeout_s: how long to wait for the map (at most `MAP_WAIT_S`) and for a replica that is still opening.
            term: the caller takes this node for the shard's primary in this term; None: any replica will do.

        Raises:
            Unavailable: STALE_SHARD_MAP where this node does not hold it or is not its primary in that term;
                SHARD_UNAVAILABLE where it is still loading.
            DataLoss: it has failed.
        """
        found = self._find(uid, shard, term)
        if found is not None and found.serving:
            return found  # nearly always: without the cost of timers
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(min(timeout_s, MAP_WAIT_S)):
                while found is None and self._state.epoch < epoch:
                    await self._changed.wait()
                    found = self._find(uid, shard, term)
        except TimeoutError:
            pass
        if found is None:
            as_what = "hold" if term is None else f"lead in term {term}"
            raise Unavailable(
                f"node {self.node_id} does not {as_what} shard {shard} of collection {uid} at epoch {self._state.epoch}",
                reason="STALE_SHARD_MAP",
            )
        await found.opened(max(0.0, until - time.monotonic()))
        return found

    def _find(self, uid: str, shard: int, term: int | None) -> HostedReplica | None:
        held = self._held.get((uid, shard))
        if held is None or term is None:
            return held
        leads = held.assignment.primary == self.node_id and held.assignment.term == term
        return held if leads else None

    async def all_opened(self) -> None:
        """Waits until none of the replicas held now is loading; failed ones count as opened.

        Those that are being restored are not waited for: that takes its time, and nobody can ask for them yet.
        """
        for held in self.replicas:
            if held.record.restoring is not None:
                continue
            try:
                await held.opened()
            except VectorfleetError as error:
                _log.error("%s is out of service: %s", held.name, error)

    # ------------------------------------------------------------------ opening and closing

    def _start_opening(self, key: Key, record: CollectionRecord, assignment: ShardAssignment) -> None:
        held = HostedReplica(record, assignment, self._pools.commit, self._write_budget, self._on_work)
        self._held[key] = held
        self._on_disk.add(held.uid)
        self._next_step(key, lambda: self._open(held), f"opening {held.name}")

    def _start_closing(self, key: Key) -> None:
        held = self._held.pop(key)
        _stop_restoring(held)
        self._next_step(key, lambda: self._close(held), f"closing {held.name}")

    def _next_step(self, key: Key, step: Callable[[], Awaitable[None]], name: str) -> None:
        """Starts a step after the last one of the same replica has ended: the engine's folder has one user at a time."""
        before = self._last_step.get(key)

        async def in_turn() -> None:
            if before is not None:
                await asyncio.wait([before])
            await step()
            if self._last_step.get(key) is asyncio.current_task():
                del self._last_step[key]

        self._last_step[key] = self._tasks.spawn(in_turn(), name)

    async def _open(self, held: HostedReplica) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            try:
                codebook, replica = await self._opened(held)
                break
            except Exception as error:
                failure = as_failure(error)
                loud = {"INTERNAL": _log.exception, "CANCELLED": _log.info}  # by its deletion
                loud.get(failure.reason, _log.error)("%s is out of service: %s", held.name, failure)
                held.fail(failure)
            if not (isinstance(failure, ResourceExhausted) or failure.retryable):
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)
            if self._held.get((held.uid, held.shard)) is not held:
                return  # it is to be closed
        held.codebook = codebook
        held.serve(replica)
        _log.info("%s serves", held.name)
        # From here on new codebooks reach it; one that came while it was opening is handed over now.
        await self._hand_out(held.uid)
        self._on_work(held)

    async def _opened(self, held: HostedReplica) -> tuple[Codebook | None, Replica]:
        if self._data.is_lost(held.uid, held.shard):
            raise DataLoss(
                f"{held.name} was held by an earlier data folder of node {self.node_id}, and is not in this one: restore the "
                "collection from a backup, or start the node on its old folder"
            )
        await self._save(held.record)
        directory = self._data.replica(held.uid, held.shard)
        restored_seqno = await self._fetch(held, directory)
        codebook = await self._codebooks.from_disk(held.uid, held.record.codebook)
        codebooks = [] if codebook is None else [*await self._codebooks.older(held.uid, codebook.version), codebook]
        replica = await self._pools.lifecycle.run(self._open_replica, directory, held.record, held.shard, codebooks)
        if restored_seqno not in (None, replica.applied_seqno):
            replica.close()
            raise DataLoss(
                f"{held.name} holds the writes up to {replica.applied_seqno}, its backup says {restored_seqno}",
                reason="BACKUP_DAMAGED",
            )
        return codebook, replica

    async def _fetch(self, held: HostedReplica, directory: Path) -> int | None:
        """Fetches the files of a replica that is being restored, once; returns its last seqno, None: there was no need."""
        if held.record.restoring is None or await self._pools.lifecycle.run(directory.exists):
            return None
        _log.info("%s comes from backup %s", held.name, held.record.restoring.backup)
        held.transfer = Transfer()
        return await self._restore(held.record, held.shard, directory, held.transfer)

    async def _close(self, held: HostedReplica) -> None:
        # However long it takes: who opens it next, or removes its folder, must find nobody inside.
        while not await held.close(self._pools.lifecycle, CLOSE_TIMEOUT_S):
            _log.warning(
                "%s is still busy after %.0f s; it is closed when its thread is done", held.name, CLOSE_TIMEOUT_S
            )
        if all(other.uid != held.uid for other in self._held.values()):
            self._codebooks.forget(held.uid)
            self._saved.pop(held.uid, None)

    async def _remove(self, uid: str) -> None:
        closing = [step for (owner, _), step in self._last_step.items() if owner == uid]
        if closing:
            await asyncio.wait(closing)
        await self._pools.lifecycle.run(self._data.remove_collection, uid)
        await self._codebooks.remove(uid)
        self._names.pop(uid, None)
        _log.info("removed collection %s", uid)

    async def _save(self, record: CollectionRecord) -> None:
        if self._saved.get(record.uid) != record:
            self._saved[record.uid] = record
            self._names[record.uid] = record.name
            await self._pools.lifecycle.run(self._data.save_collection, record)

    # ------------------------------------------------------------------ codebooks

    def _follow_codebook(self, uid: str) -> None:
        """Sees to it that the record on disk and the codebook of a collection are those of the shard map."""
        running = self._codebook_tasks.get(uid)
        if running is None or running.done():
            self._codebook_tasks[uid] = self._tasks.spawn(self._catch_up(uid), f"codebook of collection {uid}")

    async def _catch_up(self, uid: str) -> None:
        delay_s = RETRY_FIRST_S
        while (record := self._state.by_uid(uid)) is not None:
            try:
                await self._save(record)
                if record.codebook is not None:
                    await self._codebooks.obtain(uid, record.codebook, self._other_nodes())
                    await self._hand_out(uid)
            except (VectorfleetError, OSError) as error:
                _log.warning("codebook of collection %s: %s; next try in %.1f s", uid, error, delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
                continue
            if self._state.by_uid(uid) is record:
                return  # no newer one came meanwhile

    async def _hand_out(self, uid: str) -> None:
        """Gives the collection's codebook to the replicas that serve without it."""
        codebook = self._codebooks.current(uid)
        if codebook is None:
            return
        mine = [held for held in self.replicas if held.uid == uid]
        for held in mine:
            if not held.serving or held.codebook is codebook:
                continue
            held.codebook = codebook
            try:
                await held.run(self._pools.lifecycle, None, _use_codebook, codebook)
            except Unavailable:
                continue  # it is closing
            self._on_work(held)
            _log.info("%s uses codebook %d", held.name, codebook.version)
        await self._drop_codebooks(uid, mine)

    async def _drop_codebooks(self, uid: str, mine: Iterable[HostedReplica]) -> None:
        """Removes those that no segment here is encoded with: encoding again takes hours, and a restart needs them until then."""
        used: set[int] = set()
        for held in mine:
            if not held.serving:
                return  # it will say so when it serves
            try:
                used |= await held.run(self._pools.lifecycle, None, _codebooks_in_use)
            except Unavailable:
                return  # it is closing
        await self._codebooks.drop_unused(uid, used)

    def _other_nodes(self) -> Iterable[NodeInfo]:
        return [node for node in self._state.nodes.values() if node.id != self.node_id]

    # ------------------------------------------------------------------ the end

    async def close(self) -> bool:
        """Closes all replicas; False where some thread was still busy with one."""
        self._closing = True
        for held in self.replicas:
            _stop_restoring(held)
        await self._tasks.close()
        closed = await asyncio.gather(
            *(held.close(self._pools.lifecycle, CLOSE_TIMEOUT_S) for held in self.replicas), return_exceptions=True
        )
        for outcome in closed:
            if isinstance(outcome, BaseException):
                _log.error("a replica did not close", exc_info=outcome)
        self._held.clear()
        return all(outcome is True for outcome in closed)


def _stop_restoring(held: HostedReplica) -> None:
    if held.transfer is not None:
        held.transfer.cancel()


def as_failure(error: Exception) -> VectorfleetError:
    """What a replica that cannot be opened answers from then on."""
    if isinstance(error, VectorfleetError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"the node's disk is full: {error}", reason="DISK_FULL")
    if isinstance(error, OSError) and error.errno in files.SHORTAGES:
        return Unavailable(f"its files cannot be opened at present: {error}")
    if isinstance(error, OSError):
        return DataLoss(f"its files cannot be opened: {error}")
    return InternalError(f"{type(error).__name__}: {error}")


def _codebooks_in_use(replica: Replica) -> frozenset[int]:
    return replica.codebooks_in_use


def _use_codebook(replica: Replica, codebook: Codebook) -> None:
    replica.use_codebook(codebook)
