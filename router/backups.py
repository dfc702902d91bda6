"""Backups and restores, as the router sees them: who copies what, how far it is, and when it counts.

Nodes read and write the destination themselves; here is only the order of things. A backup: every shard's primary copies
its snapshot, then one node writes the manifest. A restore: collections are made with a `restoring` record, which hides them;
the controller assigns their shards as ever, nodes fetch what they are given; when all serve, the record's field is cleared.
What fails on the way is removed again. Nothing is remembered here: after a router's death the same call finds its hidden
collections in the shard map, and finishes them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from router import validation
from router.catalog import Catalog
from router.deadline import Deadline
from router.describing import Descriptions, describe_collection, replica_on
from router.nodes import NodePool
from router.shard_calls import Call, ShardCalls
from vectorfleet import errors
from vectorfleet._version import __version__
from vectorfleet.cluster.backup_place import spelt
from vectorfleet.cluster.coordinator import Conflict, Coordinator
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import CollectionRecord, RestoreRecord, ShardAssignment
from vectorfleet.internal.v1 import backup_pb2
from vectorfleet.internal.v1 import shard_service_pb2 as shard_pb
from vectorfleet.v1 import cluster_service_pb2 as pb

FORMAT_VERSION: Final = 1
TELL_S: Final = 0.25
"""How often the caller hears how far it is, and nodes are asked."""
SHARDS_AT_ONCE: Final = 64
CLEAN_UP_S: Final = 10.0
MANIFEST_TIMEOUT_S: Final = 60.0

_log = logging.getLogger(__name__)
T = TypeVar("T")
ShardKey: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class Tally:
    """How far each shard is, added up for the caller. What a shard once had it does not lose: nodes start again."""

    shards_total: int = 0
    done: set[ShardKey] = field(default_factory=set)
    bytes_of: dict[ShardKey, tuple[int, int, int]] = field(default_factory=dict)
    """Of each shard: total, done, reused."""

    def note(self, key: ShardKey, total: int, done: int, reused: int = 0) -> None:
        """A shard is so far."""
        self.bytes_of[key] = tuple(map(max, self.bytes_of.get(key, (0, 0, 0)), (total, done, reused)))  # type: ignore[assignment]

    def progress(self) -> pb.TransferProgress:
        """The sum."""
        total, done, reused = (sum(column) for column in zip((0, 0, 0), *self.bytes_of.values(), strict=True))
        return pb.TransferProgress(
            shards_total=self.shards_total,
            shards_done=len(self.done),
            bytes_total=total,
            bytes_done=done,
            bytes_reused=reused,
        )


class Backups:
    """Makes and restores backups."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool, catalog: Catalog, calls: ShardCalls) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._catalog = catalog
        self._calls = calls

    # ------------------------------------------------------------------ backup

    async def create(
        self, destination: str, names: Sequence[str], deadline: Deadline
    ) -> AsyncIterator[pb.CreateBackupResponse]:
        """Backs collections up; yields how far it is, and at last the backup.

        Args:
            destination: where.
            names: of collections; none: all.
            deadline: the caller's.

        Raises:
            VectorfleetError: see the contract. Nothing that looks complete is left.
        """
        destination = spelt(destination, "destination")
        wanted = [validation.collection_name(name, f"collections[{at}]") for at, name in enumerate(names)]
        records = [self._catalog.find(name) for name in dict.fromkeys(wanted)] or self._catalog.visible()
        if not records:
            raise errors.NotFound("there is no collection to back up")
        tally = Tally(sum(len(record.shards) for record in records))
        work = self._back_up(destination, records, tally, deadline)
        async for backup in _followed(work, deadline):
            yield pb.CreateBackupResponse(progress=tally.progress(), backup=backup)

    async def _back_up(
        self, destination: str, records: Sequence[CollectionRecord], tally: Tally, deadline: Deadline
    ) -> pb.Backup:
        now_ms = time.time_ns() // 1_000_000
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ms // 1000))
        manifest = backup_pb2.BackupManifest(
            format_version=FORMAT_VERSION,
            id=f"{moment}.{now_ms % 1000:03d}Z-{secrets.token_hex(3)}",
            create_time_ms=now_ms,
            written_by=__version__,
        )
        slots = asyncio.Semaphore(SHARDS_AT_ONCE)
        new_objects = 0

        async def one(record: CollectionRecord, number: int) -> shard_pb.BackUpShardResponse:
            call = _shard_copy(record, number, destination, tally)
            async with slots:
                return await self._calls.call(record, number, call, deadline, primary=True)

        copies = await _all_of([[one(record, shard.shard) for shard in record.shards] for record in records])
        for record, copied in zip(records, copies, strict=True):
            kept = manifest.collections.add(uid=record.uid, record=record.to_json().decode())
            for response in copied:
                kept.shards.append(response.shard)
                new_objects += response.new_objects
                if response.HasField("codebook"):
                    kept.codebook.CopyFrom(response.codebook)
        request = shard_pb.WriteBackupRequest(destination=destination, manifest=manifest)
        await self._ask_any_node(lambda stub, timeout_s: stub.WriteBackup(request, timeout=timeout_s), deadline)
        _log.info("backup %s of %d collections in %s is complete", manifest.id, len(records), destination)
        created = Timestamp()
        created.FromMilliseconds(now_ms)
        shards = [shard for one_of in manifest.collections for shard in one_of.shards]
        return pb.Backup(
            id=manifest.id,
            destination=destination,
            create_time=created,
            collections=[
                pb.BackedUpCollection(name=record.name, seqnos=[shard.seqno for shard in kept.shards])
                for record, kept in zip(records, manifest.collections, strict=True)
            ],
            objects=sum(shard.objects for shard in shards),
            bytes=sum(shard.bytes for shard in shards),
            new_objects=new_objects,
            new_bytes=tally.progress().bytes_done,
        )

    # ------------------------------------------------------------------ restore

    async def restore(
        self, source: str, backup: str, targets: Sequence[pb.RestoreTarget], deadline: Deadline
    ) -> AsyncIterator[pb.RestoreBackupResponse]:
        """Restores collections; yields how far it is, and at last their names.

        Args:
            source: where backups are.
            backup: the id of one; "": the newest.
            targets: which collections, under which names; none: all under their own.
            deadline: the caller's.

        Raises:
            VectorfleetError: see the contract. Nothing is left of what was begun.
        """
        source = spelt(source, "source")
        request = shard_pb.ReadBackupRequest(source=source, backup=backup)
        answer = await self._ask_any_node(lambda stub, timeout_s: stub.ReadBackup(request, timeout=timeout_s), deadline)
        records = _records_to_make(answer.manifest, source, targets)
        tally = Tally(sum(len(record.shards) for record in records))
        work = self._restore(records, tally, deadline)
        async for names in _followed(work, deadline):
            yield pb.RestoreBackupResponse(
                progress=tally.progress(), backup=answer.manifest.id, collections=names or ()
            )

    async def _restore(self, records: Sequence[CollectionRecord], tally: Tally, deadline: Deadline) -> list[str]:
        state = self._coordinator.state
        if not state.nodes:
            raise errors.Unavailable("no shard server is registered", reason="NO_NODES")
        for record in records:
            _refuse_taken(record, state.collections)
        begun: list[str] = []
        try:
            for record in records:
                begun += [await self._begin(record)]
            epoch = 0
            while not await self._all_serve(begun, tally, deadline):
                with suppress(TimeoutError):
                    async with asyncio.timeout(TELL_S):
                        epoch = (await self._coordinator.changed(epoch)).epoch
            for uid in begun:
                await self._show(uid)
        except BaseException:
            # Also when nobody waits any more: what was begun is ours to remove, whoever has gone.
            await asyncio.shield(self._abandon(begun))
            raise
        return [record.name for record in records]

    async def _begin(self, record: CollectionRecord) -> str:
        """Makes a hidden collection, or takes over what an earlier, equal restore left; returns its uid."""
        try:
            await self._coordinator.create_collection(record)
        except Conflict:
            found = self._coordinator.state.collections
            _refuse_taken(record, found)
            if record.name not in found:
                raise errors.Unavailable(
                    f"collection {record.name!r} changes at this moment", reason="STALE_SHARD_MAP"
                ) from None
            return found[record.name].uid
        return record.uid

    async def _all_serve(self, uids: Sequence[str], tally: Tally, deadline: Deadline) -> bool:
        """Looks at all shards once; raises what one of them failed with."""
        served = True
        for uid in uids:
            state = self._coordinator.state
            record = state.by_uid(uid)
            if record is None:
                if uid in state.deleted_uids:
                    raise errors.NotFound("the collection was deleted while it was restored")
                served = False
                continue
            descriptions = await describe_collection(self._nodes, state, record, deadline)
            for shard in record.shards:
                served &= _note_shard(record, shard, descriptions, tally)
        return served

    async def _show(self, uid: str) -> None:
        """Lets everybody see a collection."""
        while (record := self._coordinator.state.by_uid(uid)) is not None and record.restoring is not None:
            epoch = self._coordinator.state.epoch
            try:
                await self._coordinator.update_collection(replace(record, restoring=None))
                return
            except Conflict:
                await self._coordinator.changed(epoch)

    async def _abandon(self, uids: Sequence[str]) -> None:
        """Removes what is hidden still."""
        for uid in uids:
            record = self._coordinator.state.by_uid(uid)
            if record is None or record.restoring is None:
                continue
            try:
                async with asyncio.timeout(CLEAN_UP_S):
                    await self._catalog.remove(record)
            except errors.NotFound:
                continue
            except (errors.VectorfleetError, TimeoutError) as error:
                _log.warning("what was restored of collection %s stays, out of sight: %s", record.name, error)

    async def _ask_any_node(self, call: Callable[[Any, float], Any], deadline: Deadline) -> Any:
        """Asks nodes in turn until one answers. Raises what the last one raised, or `Unavailable` (NO_NODES)."""
        failure: errors.VectorfleetError = errors.Unavailable("no shard server is registered", reason="NO_NODES")
        state = self._coordinator.state
        for node_id in sorted(state.nodes):
            node = self._nodes.find(node_id, state)
            if node is None or node.circuit.open:
                continue
            try:
                return await node.call(call(node.stub, deadline.within(MANIFEST_TIMEOUT_S).remaining_s()))
            except errors.Unavailable as error:
                failure = error
        raise failure


def _shard_copy(
    record: CollectionRecord, number: int, destination: str, tally: Tally
) -> Call[shard_pb.BackUpShardResponse]:
    """The call that copies one shard."""
    key = record.uid, number

    async def call(stub: Any, shard: ShardAssignment, epoch: int, timeout_s: float) -> shard_pb.BackUpShardResponse:
        request = shard_pb.BackUpShardRequest(
            collection_uid=record.uid, shard=shard.shard, epoch=epoch, destination=destination
        )
        if record.codebook is not None:
            request.codebook_version = record.codebook.version
            request.codebook_checksum = record.codebook.checksum
            request.with_codebook = number == record.shards[0].shard
        copied = None
        response: shard_pb.BackUpShardResponse
        async for response in stub.BackUpShard(request, timeout=timeout_s):
            tally.note(key, response.bytes_total, response.bytes_done, response.bytes_reused)
            if response.HasField("shard"):
                copied = response
        if copied is None:
            raise errors.InternalError("the node ended its copy without saying what it copied")
        tally.done.add(key)
        return copied

    return call


def _records_to_make(
    manifest: backup_pb2.BackupManifest, source: str, targets: Sequence[pb.RestoreTarget]
) -> list[CollectionRecord]:
    """The hidden collections that a restore makes, unassigned, under new uids."""
    kept = {}
    for one in manifest.collections:
        try:
            record = CollectionRecord.from_json(one.record.encode())
            placement_for(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.DataLoss(
                f"the record of collection {one.uid} in backup {manifest.id} makes no sense: {error!r}",
                reason="BACKUP_DAMAGED",
            ) from error
        kept[record.name] = record
    if not targets:
        targets = [pb.RestoreTarget(collection=name) for name in sorted(kept)]
    made: dict[str, CollectionRecord] = {}
    for position, target in enumerate(targets):
        original = kept.get(target.collection)
        if original is None:
            there = ", ".join(sorted(kept)) or "none"
            raise errors.NotFound(f"backup {manifest.id} has no collection {target.collection!r}; it has {there}")
        name = validation.collection_name(target.name or target.collection, f"collections[{position}].name")
        if name in made:
            validation.refuse(f"collections[{position}].name", f"two collections cannot both become {name!r}")
        made[name] = replace(
            original,
            name=name,
            uid=secrets.token_hex(16),
            create_time_ms=time.time_ns() // 1_000_000,
            shards=tuple(replace(shard, primary="", replicas=(), in_sync=()) for shard in original.shards),
            restoring=RestoreRecord(source=source, backup=manifest.id, uid=original.uid),
        )
    return list(made.values())


def _refuse_taken(record: CollectionRecord, there: Mapping[str, CollectionRecord]) -> None:
    found = there.get(record.name)
    if found is None or found.restoring == record.restoring:
        return
    if found.restoring is not None:
        raise errors.AlreadyExists(
            f"collection {record.name!r} is being restored from backup {found.restoring.backup} in {found.restoring.source}: "
            "restore that again to finish it, or delete the collection to give it up"
        )
    raise errors.AlreadyExists(f"collection {record.name!r} exists: restore it under another name, or delete it first")


def _note_shard(record: CollectionRecord, shard: ShardAssignment, descriptions: Descriptions, tally: Tally) -> bool:
    """Whether a restored shard serves. Raises what it failed with."""
    replica = replica_on(descriptions, shard.primary, record.uid, shard.shard)
    if replica is None:
        return False
    if replica.state.status == pb.REPLICA_STATUS_FAILED:
        raise errors.error_for(
            replica.failure_reason or "DATA_LOSS",
            f"shard {shard.shard} of {record.name} on node {shard.primary}: {replica.state.message}",
        )
    key = record.uid, shard.shard
    tally.note(key, replica.restore_bytes_total, replica.restore_bytes_done)
    if replica.state.status != pb.REPLICA_STATUS_SERVING:
        return False
    tally.done.add(key)
    return True


async def _all_of(groups: Sequence[Sequence[Coroutine[Any, Any, T]]]) -> list[list[T]]:
    """Runs all at once; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [[group.create_task(one) for one in members] for members in groups]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
    return [[task.result() for task in members] for members in tasks]


async def _followed(work: Coroutine[Any, Any, T], deadline: Deadline) -> AsyncIterator[T | None]:
    """Yields None every `TELL_S` while the work is under way, then its result; ends it where nobody listens any more."""

    async def in_time() -> T:
        try:
            async with asyncio.timeout_at(deadline.at_s):
                return await work
        except TimeoutError:
            raise errors.DeadlineExceeded("the deadline passed; call again to go on") from None

    task = asyncio.create_task(in_time())
    try:
        while not task.done():
            yield None
            await asyncio.wait([task], timeout=TELL_S)
        yield task.result()
    finally:
        task.cancel()
        with suppress(BaseException):
            await asyncio.wait([task])
