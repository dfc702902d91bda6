"""The folder that a node owns: who it is, what it holds, and a lock that keeps a second process out.

    node.json                              the node's id: made once, never changed
    joined.json                            replicas that an earlier folder of the node held: made once, before it first registers
    lock                                   held with flock while a process lives
    replicas/<uid>/collection.json         the collection as last seen in the shard map
    replicas/<uid>/<shard>/                one replica: the engine's
    codebooks/<uid>/<version>.codebook     the codebook store's

The JSON files are `records`. `collection.json` lets a node that starts while etcd is away serve what it held. `joined.json` tells
a node that is new from one whose disk was lost: what the shard map gives to a node before its folder was ever registered was
held by a folder that is gone, and an empty replica in its place would answer as if nothing had ever been written. Invariant:
nothing here is removed but by `remove_collection`, which only a collection's deletion calls.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shard_server import records
from shard_server.durable import sync_folder, write_durably
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.errors import DataLoss

FORMAT_VERSION: Final = 1
"""Of the JSON files."""
_NODE: Final = "vectorfleet node"
_JOINED: Final = "vectorfleet node joined"
_COLLECTION: Final = "vectorfleet collection"
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_log = logging.getLogger(__name__)


class DataDirError(Exception):
    """The folder cannot be this node's: locked, of another node, or of an unknown format. The message says which."""


class DataDir:
    """An opened, locked data folder. `close` lets go of the lock; so does the end of the process."""

    def __init__(self, path: Path, node_id: str = "") -> None:
        """Opens or makes the folder.

        Args:
            path: the folder.
            node_id: must agree with the stored identity; "" takes the stored one, or makes one in a new folder.

        Raises:
            DataDirError: another process holds it, it belongs to another node, or its format is unknown.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataDirError(f"another process uses {path}") from None
        try:
            self.node_id = self._identity(node_id)
            self._lost = self._read_lost()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self._lock)

    def join(self, assigned: Iterable[tuple[str, int]]) -> None:
        """Notes, before the node registers for the first time, which replicas an earlier folder of its name has held.

        Args:
            assigned: (uid, shard) of what the shard map gives to this node now. Ignored if the folder was registered before.
        """
        if self._lost is None:
            missing = sorted({key for key in assigned if not self.replica(*key).exists()})
            write_durably(self._joined, records.encode(_JOINED, FORMAT_VERSION, {"lost": missing}))
            self._lost = frozenset(missing)

    def is_lost(self, uid: str, shard: int) -> bool:
        """Whether a replica was held by an earlier folder of this node's name, and its data went with that."""
        return self._lost is not None and (uid, shard) in self._lost

    @property
    def codebooks(self) -> Path:
        """The codebook store's folder."""
        return self.path / "codebooks"

    def replica(self, uid: str, shard: int) -> Path:
        """The folder of one replica, which may not exist yet."""
        return self._collection(uid) / str(shard)

    def save_collection(self, record: CollectionRecord) -> None:
        """Remembers a collection as the shard map has it now; does nothing where that is stored already."""
        path = self._collection(record.uid) / "collection.json"
        content = records.encode(_COLLECTION, FORMAT_VERSION, {"record": json.loads(record.to_json())})
        if not path.exists() or path.read_bytes() != content:
            write_durably(path, content)

    def known_collections(self) -> list[CollectionRecord]:
        """The collections that this node held replicas of when it last ran; damaged ones are logged and left out.

        Raises:
            DataDirError: one is of a format version that this release does not read.
        """
        known = []
        for path in sorted((self.path / "replicas").glob("*/collection.json")):
            try:
                fields = records.read(path, _COLLECTION, FORMAT_VERSION)
                known.append(CollectionRecord.from_json(json.dumps(fields["record"]).encode()))
            except records.UnknownFormat as error:
                raise DataDirError(error.message) from error
            except (DataLoss, OSError, ValueError, KeyError, TypeError) as error:
                _log.error("%s cannot be read, its replicas wait for the shard map: %s", path, error)
        return known

    def stored_uids(self) -> set[str]:
        """The collections of which anything is on disk. Finishes removals that a crash cut short."""
        shutil.rmtree(self.path / "removed", ignore_errors=True)
        folders = (folder for parent in ("replicas", "codebooks") for folder in (self.path / parent).glob("*"))
        return {folder.name for folder in folders if _UID.fullmatch(folder.name)}

    def remove_collection(self, uid: str) -> None:
        """Removes all replicas of a deleted collection. Renames first, so that a crash leaves no half of it to open."""
        folder = self._collection(uid)
        removed = self.path / "removed" / uid
        if not folder.exists():
            return
        removed.parent.mkdir(exist_ok=True)
        folder.rename(removed)
        sync_folder(folder.parent)
        shutil.rmtree(removed, ignore_errors=True)

    def _collection(self, uid: str) -> Path:
        return self.path / "replicas" / checked_uid(uid)

    @property
    def _joined(self) -> Path:
        return self.path / "joined.json"

    def _read_lost(self) -> frozenset[tuple[str, int]] | None:
        """What `join` noted; None: it was not called yet."""
        try:
            lost = records.read(self._joined, _JOINED, FORMAT_VERSION)["lost"]
        except FileNotFoundError:
            return None
        except (DataLoss, KeyError) as error:
            raise DataDirError(
                error.message if isinstance(error, DataLoss) else f"{self._joined} names no replicas"
            ) from error
        return frozenset((str(uid), int(shard)) for uid, shard in lost)

    def _identity(self, wanted: str) -> str:
        path = self.path / "node.json"
        if not path.exists():
            node_id = wanted or f"node-{uuid.uuid4().hex[:12]}"
            write_durably(path, records.encode(_NODE, FORMAT_VERSION, {"node_id": node_id}))
            return node_id
        try:
            node_id = str(records.read(path, _NODE, FORMAT_VERSION)["node_id"])
        except (DataLoss, KeyError) as error:
            raise DataDirError(error.message if isinstance(error, DataLoss) else f"{path} names no node") from error
        if wanted and wanted != node_id:
            raise DataDirError(f"{self.path} belongs to node {node_id!r}, not to {wanted!r}")
        return node_id


def checked_uid(uid: str) -> str:
    """Returns a collection's uid that may stand in a path. Raises `ValueError` for any other."""
    if _UID.fullmatch(uid) is None:
        raise ValueError(f"{uid!r} is no collection uid")
    return uid
