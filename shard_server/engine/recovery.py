"""From files to a replica's state: manifest, segments (checked and mapped), tombstones, then the log above what is sealed.

What is missing, damaged, of another replica or of an unknown format version is refused by its name, and nothing is changed;
only leftovers of a crash, which the manifest does not name, are removed. Terms, sums and an index are derived: lost terms and
sums are made anew at once; without its index a segment is searched exactly until background work has encoded it again.

`replica.json` is written when a new replica's store is complete. With it, the store must be there: one that lacks its CURRENT is
damaged, not new. And it is read before the store is opened, which changes files: a later release's replica stays untouched.
"""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from shard_server import records
from shard_server.durable import write_durably
from shard_server.engine import disk, segment
from shard_server.engine.acknowledged import Acknowledged
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.index import Codebook
from shard_server.engine.state import ReplicaIdentity, ReplicaState
from shard_server.engine.store import Store, StoreMemory, write_ahead_bytes
from shard_server.engine.view import SegmentView
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2

FORMAT_VERSION: Final = 1
ACKNOWLEDGED: Final = "acknowledged"
_KIND: Final = "vectorfleet replica"
_OPENING_BYTES_MIN: Final = 4 << 20
_log = logging.getLogger(__name__)


def recover(
    directory: Path,
    identity: ReplicaIdentity,
    codebooks: Sequence[Codebook],
    known: Mapping[int, segment.Segment] | None = None,
    memory: StoreMemory | None = None,
) -> ReplicaState:
    """Makes a new replica's state, or that of the files in `directory`; published.

    Args:
        directory: the replica's, which exists.
        identity: what it must be.
        codebooks: those at hand, the current one last.
        known: by number, segments that are open and checked already.
        memory: what its store shares with others.

    Raises:
        DataLoss: files are damaged, missing, of an unknown format version, or of another replica.
        ResourceExhausted: DISK_FULL; opening takes some room.
        Unavailable: the store is still in use.
        OSError: a file of ours cannot be written.
    """
    complete = _is_complete(directory, identity)
    store = Store(directory / "store", create=not complete, memory=memory)
    try:
        state = _state_of(directory, identity, store, codebooks, known or {}, complete=complete)
        if not complete:
            write_durably(directory / "replica.json", records.encode(_KIND, FORMAT_VERSION, _shape(identity)))
        state.publish()
        return state
    except BaseException as error:
        store.close()
        # Whoever keeps the error keeps the iterators in its frames, and with them RocksDB's lock on the folder.
        traceback.clear_frames(error.__traceback__)
        raise


def require_room(directory: Path) -> None:
    """Raises `OSError` where the disk would not take what opening writes: write-ahead logs become tables."""
    disk.probe(directory, _OPENING_BYTES_MIN + write_ahead_bytes(directory / "store"))


def _is_complete(directory: Path, identity: ReplicaIdentity) -> bool:
    path = directory / "replica.json"
    try:
        found = records.read(path, _KIND, FORMAT_VERSION)
    except FileNotFoundError:
        return False
    if found != _shape(identity):
        raise DataLoss(f"{path} says {found} where {_shape(identity)} is expected")
    return True


def _shape(identity: ReplicaIdentity) -> dict[str, str | int]:
    return {
        "collection_uid": identity.collection_uid,
        "shard": identity.shard,
        "dim": identity.dim,
        "metric": identity.metric,
    }


def _state_of(
    directory: Path,
    identity: ReplicaIdentity,
    store: Store,
    codebooks: Sequence[Codebook],
    known: Mapping[int, segment.Segment],
    *,
    complete: bool,
) -> ReplicaState:
    manifest = store.manifest()
    if manifest is None and complete:
        raise DataLoss(f"the store {directory / 'store'} has lost its manifest")
    if manifest is None:
        manifest = _created(store, identity)
    _check(manifest, identity, directory)
    segments_directory = directory / "segments"
    segments_directory.mkdir(exist_ok=True)
    _remove_leftovers(segments_directory, manifest)
    segments = _segments(segments_directory, manifest, store, codebooks, known)
    state = ReplicaState(identity, store, manifest, segments, codebooks)
    _replay(state)
    _check_end(state, directory)
    return state


def _created(store: Store, identity: ReplicaIdentity) -> storage_pb2.ReplicaManifest:
    manifest = storage_pb2.ReplicaManifest(
        format_version=FORMAT_VERSION,
        collection_uid=identity.collection_uid,
        shard=identity.shard,
        dim=identity.dim,
        metric=identity.metric,
        next_segment=1,
    )
    _save(store, manifest)
    return manifest


def _save(store: Store, manifest: storage_pb2.ReplicaManifest) -> None:
    batch = store.batch()
    batch.put_manifest(manifest)
    batch.write(sync=True)


def _check(manifest: storage_pb2.ReplicaManifest, identity: ReplicaIdentity, directory: Path) -> None:
    if manifest.format_version != FORMAT_VERSION:
        raise records.UnknownFormat(f"the manifest in {directory}", manifest.format_version, FORMAT_VERSION)
    found = (manifest.collection_uid, manifest.shard, manifest.dim, manifest.metric)
    wanted = (identity.collection_uid, identity.shard, identity.dim, identity.metric)
    if found != wanted:
        raise DataLoss(f"{directory} holds (collection, shard, dim, metric) {found} where {wanted} is expected")


def _remove_leftovers(directory: Path, manifest: storage_pb2.ReplicaManifest) -> None:
    """Removes what a crash left half-made, and what a crash kept from being removed."""
    kept = {str(entry.segment): entry for entry in manifest.segments}
    for path in directory.iterdir():
        entry = kept.get(path.name)
        if entry is None:
            shutil.rmtree(path)
            continue
        for file in path.glob("index-*"):
            if file.name != entry.index.name:
                file.unlink()


def _segments(
    directory: Path,
    manifest: storage_pb2.ReplicaManifest,
    store: Store,
    codebooks: Sequence[Codebook],
    known: Mapping[int, segment.Segment],
) -> list[SegmentView]:
    payload_of = store.points().payload_of
    versions = {codebook.version for codebook in codebooks}
    opened = []
    for entry in manifest.segments:
        one = known.get(entry.segment)
        if one is None or one.entry != entry:
            place = directory / str(entry.segment)
            one = segment.open_segment(place, entry, manifest.dim, manifest.metric, payload_of)
            one = _with_index(one, versions)
        opened.append(one)
    if [one.entry for one in opened] != list(manifest.segments):
        _log.warning(
            "terms or sums in %s were damaged or missing; they were made again of payloads and vectors", directory
        )
        del manifest.segments[:]
        manifest.segments.extend(one.entry for one in opened)
        _save(store, manifest)
    dead: dict[int, list[int]] = {}
    for number, row in store.tombstones():
        dead.setdefault(number, []).append(row)
    return [
        SegmentView(one, LiveRows.all_of(one.rows).without(np.asarray(dead.get(one.number, []), np.int64)))
        for one in opened
    ]


def _with_index(one: segment.Segment, versions: set[int]) -> segment.Segment:
    """With its index, where that is whole and its codebook is at hand; else without, to be encoded again."""
    if not one.entry.HasField("index") or one.entry.codebook_version not in versions:
        return one
    try:
        return segment.attach_index(one)
    except DataLoss as error:
        _log.warning("%s; the vectors are whole, so they are encoded again", error.message)
        return one


def _replay(state: ReplicaState) -> None:
    """Applies the log's tail. Entries that the store has applied already only come back into the buffer."""
    applied = state.store.applied()
    shard, uid = state.identity.shard, state.identity.collection_uid
    checked = False
    for entry in state.store.log_after(state.applied):
        if entry.first_seqno != state.applied + 1:
            raise DataLoss(f"the log of shard {shard} of {uid} lacks seqno {state.applied + 1}")
        if state.applied >= applied and not checked:
            state.kill_superseded()
            checked = True
        if state.applied < applied:
            state.restore(entry)
        else:
            state.apply([entry])
    if not checked:
        state.kill_superseded()
    if state.applied < applied:
        raise DataLoss(f"the log of shard {shard} ends at seqno {state.applied}, but {applied} was applied")


def _check_end(state: ReplicaState, directory: Path) -> None:
    acknowledged = Acknowledged(directory / ACKNOWLEDGED).seqno()
    if state.applied < acknowledged:
        raise DataLoss(
            f"the log in {directory / 'store'} ends at seqno {state.applied}, but writes up to {acknowledged} were"
            " acknowledged: its write-ahead log was cut short or removed"
        )
