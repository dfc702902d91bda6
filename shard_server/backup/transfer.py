"""One shard to a backup, and back: blocking, in a thread; watched and stopped from the event loop through `Transfer`.

Out: files that are not there yet, then the list of all of them. Back: each file is checked while it is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import xxhash

from shard_server.backup import layout
from shard_server.backup.stores import ObjectStore
from shard_server.durable import sync_folder
from shard_server.engine import files
from vectorfleet.errors import error_for
from vectorfleet.internal.v1 import backup_pb2, storage_pb2

if TYPE_CHECKING:
    from shard_server.engine.snapshot import Snapshot

MANIFEST_BYTES_MAX: Final = 48 << 20
"""It travels in one message."""


class Transfer:
    """How far a copy is. The copying thread writes, the event loop reads and cancels."""

    def __init__(self) -> None:
        self.bytes_total = 0
        self.bytes_done = 0
        self.bytes_reused = 0
        self.new_objects = 0
        self._cancelled = False

    def cancel(self) -> None:
        """Lets the copy end at its next few bytes."""
        self._cancelled = True

    def moved(self, count: int) -> None:
        """So many bytes more. Raises `VectorfleetError` (CANCELLED) where nobody waits for them any more."""
        self.bytes_done += count
        if self._cancelled:
            raise error_for("CANCELLED", "the copy was cancelled")


def upload_shard(
    store: ObjectStore,
    snapshot: Snapshot,
    transfer: Transfer,
) -> backup_pb2.ShardBackup:
    """Copies a snapshot to a store.

    Args:
        store: the destination.
        snapshot: of the replica.
        transfer: is told how far it is.

    Raises:
        DataLoss: a file of the replica does not match its checksum: what is damaged is not backed up as if it were whole.
        VectorfleetError: as the store's; CANCELLED.
    """
    prefix = layout.shard_prefix(snapshot.collection_uid, snapshot.shard)
    listed = [
        backup_pb2.BackedUpFile(path=entry.name, object=layout.object_of(prefix, entry))
        for entry in snapshot.contents()
    ]
    present = store.sizes(prefix)
    new = layout.absent(listed, present)
    transfer.bytes_total = sum(one.object.bytes for one in new)
    transfer.bytes_reused = sum(one.object.bytes for one in listed) - transfer.bytes_total
    for one in new:
        files.verify(snapshot.directory, [_entry(one)])
        store.put_file(one.object.key, snapshot.directory / one.path, transfer.moved)
        transfer.new_objects += 1
    contents = layout.to_json(backup_pb2.ShardContents(files=listed))
    return backup_pb2.ShardBackup(
        shard=snapshot.shard,
        seqno=snapshot.seqno,
        contents=_put(store, prefix, contents, present, transfer),
        objects=len(listed),
        bytes=sum(one.object.bytes for one in listed),
    )


def upload_codebook(store: ObjectStore, uid: str, content: bytes, transfer: Transfer) -> backup_pb2.BackupObject:
    """Copies a codebook's file to a store; raises as the store does."""
    prefix = layout.codebook_prefix(uid)
    return _put(store, prefix, content, store.sizes(prefix), transfer)


def _put(
    store: ObjectStore, prefix: str, content: bytes, present: Mapping[str, int], transfer: Transfer
) -> backup_pb2.BackupObject:
    """Writes a content under the key that is its own, unless it is there."""
    one = layout.object_of_content(prefix, content)
    if present.get(one.key) != one.bytes:
        store.put(one.key, content)
        transfer.bytes_total += one.bytes
        transfer.moved(one.bytes)
        transfer.new_objects += 1
    return one


def download_shard(
    store: ObjectStore,
    shard: backup_pb2.ShardBackup,
    building: Path,
    transfer: Transfer,
) -> None:
    """Copies a shard's files into a new folder, each checked and durable.

    Args:
        store: the source.
        shard: what the backup's manifest says of it.
        building: the folder; what an earlier try left there is removed.
        transfer: is told how far it is.

    Raises:
        DataLoss: BACKUP_DAMAGED, naming the object.
        VectorfleetError: as the store's; CANCELLED.
    """
    shutil.rmtree(building, ignore_errors=True)
    contents = layout.from_json(
        backup_pb2.ShardContents, read_object(store, shard.contents, MANIFEST_BYTES_MAX), shard.contents.key
    )
    transfer.bytes_total += sum(one.object.bytes for one in contents.files)
    folders = {building}
    for one in contents.files:
        path = building / _checked(one.path, shard.contents.key)
        folders.update(parent for parent in path.parents if parent.is_relative_to(building))
        path.parent.mkdir(parents=True, exist_ok=True)
        written = files.write(path, _told(store, one.object, transfer))
        if (written.bytes, written.checksum) != (one.object.bytes, one.object.checksum):
            raise layout.damaged(one.object.key, "it does not match its checksum")
    for folder in folders:
        sync_folder(folder)


def read_object(store: ObjectStore, one: backup_pb2.BackupObject, bytes_max: int) -> bytes:
    """Reads an object whole and checks it. Raises `DataLoss` (BACKUP_DAMAGED)."""
    content = bytearray()
    try:
        for chunk in store.chunks(one.key):
            content += chunk
            if len(content) > bytes_max:
                raise layout.damaged(one.key, f"it has more than {bytes_max} bytes")
    except FileNotFoundError as error:
        raise layout.damaged(one.key, "it is not there") from error
    if (len(content), xxhash.xxh3_64_intdigest(content)) != (one.bytes, one.checksum):
        raise layout.damaged(one.key, "it does not match its checksum")
    return bytes(content)


def _told(store: ObjectStore, one: backup_pb2.BackupObject, transfer: Transfer) -> Iterator[bytes]:
    try:
        for chunk in store.chunks(one.key):
            transfer.moved(len(chunk))
            yield chunk
    except FileNotFoundError as error:
        raise layout.damaged(one.key, "it is not there") from error


def _checked(path: str, key: str) -> PurePosixPath:
    """A path that stays in the replica's folder: a backup comes from outside."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or parts.parts[0] not in ("store", "segments"):
        raise layout.damaged(key, f"it names {path!r}, which is no file of a replica")
    return parts


def _entry(one: backup_pb2.BackedUpFile) -> storage_pb2.FileEntry:
    return storage_pb2.FileEntry(name=one.path, bytes=one.object.bytes, checksum=one.object.checksum)
