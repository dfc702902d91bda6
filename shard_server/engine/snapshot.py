"""A replica's files as they were at one moment: for a backup, and from one.

A snapshot is a folder of links: a RocksDB checkpoint, and the files of the segments that its manifest names. It costs
next to no space and no time, and stays whole while the replica writes, merges and removes; but it keeps what was removed
on the disk until it is removed itself.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shard_server.engine import files
from shard_server.engine.state import ReplicaIdentity, ReplicaState
from shard_server.engine.store import Store
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2

FOLDER: Final = "snapshots"
"""Below a replica's directory; what is in it when the replica is opened was left by a crash."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files below `directory` that make up a replica which holds the writes 1 to `seqno`."""

    directory: Path
    collection_uid: str
    shard: int
    seqno: int
    segment_files: tuple[storage_pb2.FileEntry, ...]
    """With names relative to the directory."""

    def contents(self) -> list[storage_pb2.FileEntry]:
        """All files, with names relative to the directory. Reads those of RocksDB to find their checksums."""
        entries = []
        for path in sorted((self.directory / "store").iterdir()):
            entry = files.measured(path)
            entry.name = f"store/{path.name}"
            entries.append(entry)
        return [*entries, *self.segment_files]

    def remove(self) -> None:
        """Gives the space back."""
        shutil.rmtree(self.directory, ignore_errors=True)


def take(state: ReplicaState, directory: Path, codebook_version: int) -> Snapshot:
    """Takes a snapshot of a replica that neither logs nor applies writes meanwhile.

    Args:
        state: its state.
        directory: the replica's.
        codebook_version: segments keep their codes where they are under this codebook; codes are derived.

    Raises:
        OSError, VectorfleetError: it failed, and left nothing.
    """
    folder = directory / FOLDER / secrets.token_hex(8)
    linked: list[storage_pb2.FileEntry] = []
    try:
        folder.mkdir(parents=True)
        with state.lock:  # so that no segment comes or goes between the store's manifest and the links
            state.store.checkpoint(folder / "store")
            for part in state.segments:
                one = part.segment
                with_codes = one.index is not None and one.codebook_version == codebook_version
                (folder / "segments" / str(one.number)).mkdir(parents=True)
                derived = [one.entry.terms, one.entry.sums, *([one.entry.index] if with_codes else [])]
                for file in [*one.entry.files, *derived]:
                    name = f"segments/{one.number}/{file.name}"
                    (folder / name).hardlink_to(one.directory / file.name)
                    linked.append(storage_pb2.FileEntry(name=name, bytes=file.bytes, checksum=file.checksum))
            return Snapshot(folder, state.identity.collection_uid, state.identity.shard, state.applied, tuple(linked))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def adopt(directory: Path, identity: ReplicaIdentity) -> None:
    """Makes restored files those of a replica of this identity: all but the collection's uid must agree already.

    Raises:
        DataLoss: they are of a replica of another shape.
    """
    store = Store(directory / "store", create=False)
    try:
        manifest = store.manifest()
        if manifest is None:
            raise DataLoss(f"{directory} holds no replica")
        found = (manifest.shard, manifest.dim, manifest.metric)
        if found != (identity.shard, identity.dim, identity.metric):
            raise DataLoss(
                f"{directory} holds (shard, dim, metric) {found}, not {(identity.shard, identity.dim, identity.metric)}"
            )
        manifest.collection_uid = identity.collection_uid
        batch = store.batch()
        batch.put_manifest(manifest)
        batch.write(sync=True)
    finally:
        store.close()
