"""What this node does for backups: copies snapshots out and restored shards in, and reads and writes manifests.

The blocking parts run in threads of their own pool; the event loop watches and cancels them. Each place is checked against this
node's roots, whoever named it: a router's caller, or the shard map.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shard_server.backup import layout
from shard_server.backup.places import Roots
from shard_server.backup.stores import ObjectStore, open_store
from shard_server.backup.transfer import (
    MANIFEST_BYTES_MAX,
    Transfer,
    download_shard,
    read_object,
    upload_codebook,
    upload_shard,
)
from shard_server.codebook_store import CodebookStore
from shard_server.durable import sync_folder
from shard_server.hosted import HostedReplica
from shard_server.threads import WorkPool
from vectorfleet.cluster.shard_map import CollectionRecord, RestoreRecord
from vectorfleet.errors import DataLoss, NotFound, ResourceExhausted, Unavailable
from vectorfleet.internal.v1 import backup_pb2
from vectorfleet.internal.v1 import shard_service_pb2 as pb

if TYPE_CHECKING:
    from shard_server.engine.replica import Replica
    from shard_server.engine.snapshot import Snapshot

Adopt = Callable[[Path, CollectionRecord, int], None]
"""(directory, collection, shard); blocks."""
_Copied = tuple[backup_pb2.ShardBackup | None, backup_pb2.BackupObject | None]
"""What was copied: a shard, and the codebook where that was asked for."""

TELL_S: Final = 0.25
"""How often a router hears how far a copy is."""
CLOSE_TIMEOUT_S: Final = 5.0
STORES_KEPT: Final = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArchivePools:
    """Where an archive's blocking work runs."""

    snapshots: WorkPool
    """They hold up writers for a moment, and must not be slow."""
    copies: WorkPool
    """They wait for the destination, long."""
    manifests: WorkPool
    """They wait for it as well, but never behind copies."""


class Archive:
    """One node's part in backups. Used from one event loop."""

    def __init__(self, node_id: str, roots: Roots, codebooks: CodebookStore, adopt: Adopt, pools: ArchivePools) -> None:
        """Does nothing by itself.

        Args:
            node_id: for messages.
            roots: where this node may read and write backups.
            codebooks: the files of codebooks, which go with backups and come from them.
            adopt: makes restored files those of a shard of a collection.
            pools: threads.
        """
        self._node_id = node_id
        self._roots = roots
        self._codebooks = codebooks
        self._adopt = adopt
        self._pools = pools
        self._running: dict[asyncio.Task[_Copied], Transfer] = {}
        # To begin with an object store takes its library half a second.
        self._store_at = lru_cache(STORES_KEPT)(open_store)

    # ------------------------------------------------------------------ out

    async def back_up(
        self, held: HostedReplica, request: pb.BackUpShardRequest
    ) -> AsyncIterator[pb.BackUpShardResponse]:
        """Copies one replica as it is now; yields how far it is, and at last what was copied.

        Raises:
            FailedPrecondition: DESTINATION_REFUSED.
            DataLoss: a file of the replica is damaged.
            VectorfleetError: as the replica's and the store's.
        """
        place = self._roots.admit(request.destination, self._node_id)
        transfer = Transfer()
        task = asyncio.get_running_loop().create_task(
            self._copy(held, place, request, transfer), name=f"backing up {held.name}"
        )
        self._running[task] = transfer
        task.add_done_callback(self._ended)
        try:
            while not task.done():
                yield _told(transfer)
                await asyncio.wait([task], timeout=TELL_S)
            copied = task.result()
            yield _told(transfer, copied)
        finally:
            # Nobody listens any more, or it is done. The copy is not cancelled as a task: it removes its snapshot itself.
            transfer.cancel()

    async def _copy(
        self, held: HostedReplica, place: str, request: pb.BackUpShardRequest, transfer: Transfer
    ) -> _Copied:
        snapshot = await held.run(self._pools.snapshots, None, _snapshot, request.codebook_version)
        try:
            return await self._pools.copies.run(self._upload, place, snapshot, request, transfer)
        except DataLoss as error:
            held.note_damage(error)
            raise
        finally:
            await self._pools.copies.run(snapshot.remove)

    def _ended(self, task: asyncio.Task[_Copied]) -> None:
        self._running.pop(task, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it gets it; nobody need wait

    def _upload(self, place: str, snapshot: Snapshot, request: pb.BackUpShardRequest, transfer: Transfer) -> _Copied:
        store = self._store_at(place)
        shard = upload_shard(store, snapshot, transfer)
        if not request.with_codebook:
            return shard, None
        uid, version = snapshot.collection_uid, request.codebook_version
        codebook = self._codebooks.load(uid, version, request.codebook_checksum)
        if codebook is None:
            raise Unavailable(f"node {self._node_id} does not have codebook {version} yet: try again")
        return shard, upload_codebook(store, uid, codebook, transfer)

    # ------------------------------------------------------------------ manifests

    async def write(self, place: str, manifest: backup_pb2.BackupManifest) -> None:
        """Writes a backup's manifest: from now on it exists."""
        admitted = self._roots.admit(place, self._node_id)
        key = layout.manifest_key(manifest.id)
        await self._pools.manifests.run(lambda: self._store_at(admitted).put(key, layout.write_manifest(manifest)))

    async def read(self, place: str, backup: str) -> backup_pb2.BackupManifest:
        """Reads the manifest of a backup, or of the newest one.

        Raises:
            NotFound: BACKUP_NOT_FOUND.
            DataLoss: BACKUP_DAMAGED.
            FailedPrecondition: DESTINATION_REFUSED, BACKUP_FORMAT_UNKNOWN.
        """
        admitted = self._roots.admit(place, self._node_id)
        return await self._pools.manifests.run(lambda: _read(self._store_at(admitted), admitted, backup))

    # ------------------------------------------------------------------ in

    async def restore(self, record: CollectionRecord, shard: int, directory: Path, transfer: Transfer) -> int:
        """Fetches the files of one shard into a directory that does not exist yet; it has them all when it exists.

        Args:
            record: the collection, which is being restored.
            shard: its number.
            directory: the replica's.
            transfer: is told how far it is, and may be cancelled.

        Returns:
            The last seqno that the replica must hold.

        Raises:
            DataLoss: BACKUP_DAMAGED.
            VectorfleetError: as `read`'s and the store's.
        """
        source = record.restoring
        assert source is not None
        place = self._roots.admit(source.source, self._node_id)
        return await self._pools.copies.run(self._download, place, source, record, shard, directory, transfer)

    def _download(
        self,
        place: str,
        source: RestoreRecord,
        record: CollectionRecord,
        shard: int,
        directory: Path,
        transfer: Transfer,
    ) -> int:
        store = self._store_at(place)
        manifest = _read(store, place, source.backup)
        collection = next((one for one in manifest.collections if one.uid == source.uid), None)
        kept = next((one for one in collection.shards if one.shard == shard), None) if collection else None
        if collection is None or kept is None:
            raise DataLoss(
                f"backup {manifest.id} lacks shard {shard} of collection {source.uid}", reason="BACKUP_DAMAGED"
            )
        if record.codebook is not None:
            transfer.bytes_total = collection.codebook.bytes
            codebook = read_object(store, collection.codebook, collection.codebook.bytes)
            transfer.moved(len(codebook))
            self._codebooks.save(record.uid, record.codebook.version, codebook)
        building = directory.with_name(f"{directory.name}.restoring")
        try:
            download_shard(store, kept, building, transfer)
            self._adopt(building, record, shard)
            building.rename(directory)
            sync_folder(directory.parent)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ResourceExhausted(f"node {self._node_id} has no room for it", reason="DISK_FULL") from error
        return kept.seqno

    # ------------------------------------------------------------------ the end

    async def close(self) -> None:
        """Ends the copies that run."""
        for transfer in self._running.values():
            transfer.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_TIMEOUT_S)


def _snapshot(replica: Replica, codebook_version: int) -> Snapshot:
    return replica.snapshot(codebook_version)


def _told(transfer: Transfer, copied: _Copied = (None, None)) -> pb.BackUpShardResponse:
    return pb.BackUpShardResponse(
        bytes_total=transfer.bytes_total,
        bytes_done=transfer.bytes_done,
        bytes_reused=transfer.bytes_reused,
        new_objects=transfer.new_objects,
        shard=copied[0],
        codebook=copied[1],
    )


def _read(store: ObjectStore, place: str, backup: str) -> backup_pb2.BackupManifest:
    there = layout.backup_ids(store.sizes(layout.BACKUPS))
    if not there:
        raise NotFound(f"there is no complete backup in {place}", reason="BACKUP_NOT_FOUND")
    wanted = backup or there[-1]
    key = layout.manifest_key(wanted)
    if wanted not in there:
        newest = ", ".join(there[-5:])
        raise NotFound(f"there is no backup {wanted!r} in {place}; the newest are {newest}", reason="BACKUP_NOT_FOUND")
    content = bytearray()
    for chunk in store.chunks(key):
        content += chunk
        if len(content) > MANIFEST_BYTES_MAX:
            raise layout.damaged(key, f"it has more than {MANIFEST_BYTES_MAX} bytes")
    return layout.read_manifest(bytes(content), key)
