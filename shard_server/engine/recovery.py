"""From files to a replica's state: manifest, segments (checked and mapped), tombstones, then the log above what is sealed.

What is missing, damaged, of another replica or of an unknown format version is refused by its name, and nothing is changed;
only leftovers of a crash, which the manifest does not name, are removed. Terms and an index are derived: lost terms are made
anew at once; without its index a segment is searched exactly until background work has encoded it again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from shard_server.engine import segment, snapshot
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.index import Codebook
from shard_server.engine.state import ReplicaIdentity, ReplicaState
from shard_server.engine.store import Store
from shard_server.engine.view import SegmentView
from vectorfleet.errors import DataLoss
from vectorfleet.internal.v1 import storage_pb2

FORMAT_VERSION: Final = 1


def recover(directory: Path, identity: ReplicaIdentity, store: Store, codebooks: Sequence[Codebook]) -> ReplicaState:
    """Makes a new replica's state, or that of the files in `directory`; published.

    Args:
        directory: the replica's.
        identity: what it must be.
        store: its RocksDB, open.
        codebooks: those at hand, the current one last.

    Raises:
        DataLoss: files are damaged, missing, of an unknown format version, or of another replica.
    """
    manifest = store.manifest()
    if manifest is None:
        manifest = _created(store, identity)
    _check(manifest, identity, directory)
    segments_directory = directory / "segments"
    segments_directory.mkdir(exist_ok=True)
    _remove_leftovers(segments_directory, manifest)
    shutil.rmtree(directory / snapshot.FOLDER, ignore_errors=True)
    state = ReplicaState(
        identity, store, manifest, _segments(segments_directory, manifest, store, codebooks), codebooks
    )
    _replay(state)
    state.publish()
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
        raise DataLoss(
            f"{directory} has format version {manifest.format_version}; this release reads version {FORMAT_VERSION}"
        )
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
    directory: Path, manifest: storage_pb2.ReplicaManifest, store: Store, codebooks: Sequence[Codebook]
) -> list[SegmentView]:
    payload_of = store.points().payload_of
    opened = [
        segment.open_segment(directory / str(entry.segment), entry, manifest.dim, manifest.metric, payload_of)
        for entry in manifest.segments
    ]
    if [one.entry for one in opened] != list(manifest.segments):  # terms were lost, and are made anew
        del manifest.segments[:]
        manifest.segments.extend(one.entry for one in opened)
        _save(store, manifest)
    dead: dict[int, list[int]] = {}
    for number, row in store.tombstones():
        dead.setdefault(number, []).append(row)
    versions = {codebook.version for codebook in codebooks}
    return [
        SegmentView(
            _with_index(one, versions),
            LiveRows.all_of(one.rows).without(np.asarray(dead.get(one.number, []), np.int64)),
        )
        for one in opened
    ]


def _with_index(one: segment.Segment, versions: set[int]) -> segment.Segment:
    """With its index, where that is whole and its codebook is at hand; else without, to be encoded again."""
    if not one.entry.HasField("index") or one.entry.codebook_version not in versions:
        return one
    try:
        return segment.attach_index(one)
    except DataLoss:
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
