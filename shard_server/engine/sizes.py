"""How large a replica is, and what its memory is taken by: counted from a view, without touching any row."""

from __future__ import annotations

from shard_server.engine.answers import ReplicaStats
from shard_server.engine.state import ReplicaState
from shard_server.engine.upkeep import ENCODE_ROWS_MIN
from shard_server.engine.view import View


def sizes_of(view: View, state: ReplicaState) -> ReplicaStats:
    """Sizes, as of `view`; buffers and manifest are those of the moment."""
    codebook = state.codebook
    current = [
        part
        for part in view.segments
        if codebook is None or part.segment.codebook_version == codebook.version or part.segment.rows < ENCODE_ROWS_MIN
    ]
    buffers = [buffer for buffer in (state.frozen, state.active) if buffer is not None]
    files = {
        entry.name: sum(
            one.bytes for part in view.segments for one in part.segment.entry.files if one.name == entry.name
        )
        for part in view.segments[:1]
        for entry in part.segment.entry.files
    }
    bytes_of = {
        "buffers": sum(buffer.nbytes for buffer in buffers),
        "tombstones": sum(part.live.nbytes for part in view.segments),
        "filters": sum(part.segment.passing.nbytes for part in view.segments),
        "codes": sum(part.segment.entry.index.bytes for part in view.segments),
        "terms": sum(part.segment.entry.terms.bytes for part in view.segments),
        "sums": sum(part.segment.entry.sums.bytes for part in view.segments),
        **files,
    }
    return ReplicaStats(
        points=view.live,
        indexed_points=sum(part.live.live for part in current),
        buffered_points=sum(buffer.live.live for buffer in view.buffers),
        tombstones=sum(part.live.dead for part in view.segments),
        segments=len(view.segments),
        codebook_version=0 if codebook is None else codebook.version,
        applied_seqno=view.applied_seqno,
        unsealed_writes=max(0, view.applied_seqno - state.manifest.sealed_seqno),
        disk_bytes=sum(part.segment.disk_bytes for part in view.segments),
        index_bytes=bytes_of["codes"],
        memory_bytes=bytes_of["buffers"] + bytes_of["tombstones"] + bytes_of["filters"],
        bytes_of=bytes_of,
    )
