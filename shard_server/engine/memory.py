"""What a replica writes into its process's ledger of memory, and what the ledger may refuse it.

Held at any time: rows of its buffers, codes and row ids of its segments, tombstones, and an allowance for the open store. Raw
vectors, ids and terms of segments are mapped files: the kernel takes their pages back, and they are not counted. Codes are
mapped as well, but every search reads them: a node without room for them would read its disk for each query.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vectorfleet.ledger import Ledger

if TYPE_CHECKING:
    from shard_server.engine.state import ReplicaIdentity, ReplicaState
    from shard_server.engine.store import StoreMemory
    from vectorfleet.internal.v1 import storage_pb2

BUFFERS: Final = "buffers"
INDEX: Final = "index"
TOMBSTONES: Final = "tombstones"
STORES: Final = "open stores"
MERGING: Final = "merging"
ENCODING: Final = "encoding"
OPENING: Final = "opening"

REPLICA_BYTES: Final = 4 << 20
"""Of an open replica without a point: RocksDB's own structures, and the first block of each table in its memory."""
WORK_BYTES: Final = 32 << 20
"""Of building a segment, beside its codes: pieces of vectors on their way, padded and prepared."""


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What the replicas of a process share."""

    ledger: Ledger = field(default_factory=Ledger.without_limit)
    stores: StoreMemory | None = None
    """None: each store has RocksDB's defaults, of its own."""

    @contextlib.contextmanager
    def growing(self, state: ReplicaState, mutations: Sequence[storage_pb2.Mutation]) -> Iterator[None]:
        """Reserves what these writes will add to the buffer, for the time of a block, and states what they did add.

        Deletes add nothing, and pass a full ledger. Raises `ResourceExhausted` (MEMORY_FULL) before anything is written.
        """
        upserts = [mutation.upsert for mutation in mutations if mutation.WhichOneof("kind") == "upsert"]
        rows = sum(len(upsert.ids) for upsert in upserts)
        payload_bytes = sum(len(payload) for upsert in upserts for payload in upsert.payloads)
        codebook = state.codebook
        code_bytes = codebook.code_bytes if codebook is not None and codebook.codes_alone else 0
        size = state.active.growth(rows, payload_bytes, code_bytes) if rows else 0
        with self.ledger.reserving(BUFFERS, size):
            yield
            self.write_down(state)

    def write_down(self, state: ReplicaState) -> None:
        """States what a replica holds now."""
        owner = _owner(state.identity)
        with state.lock:
            buffers = sum(buffer.nbytes for buffer in (state.frozen, state.active) if buffer is not None)
            segments = state.segments
        self.ledger.hold(BUFFERS, owner, buffers)
        self.ledger.hold(INDEX, owner, sum(part.segment.entry.index.bytes for part in segments))
        self.ledger.hold(TOMBSTONES, owner, sum(part.nbytes for part in segments))
        self.ledger.hold(STORES, owner, REPLICA_BYTES)

    def forget(self, identity: ReplicaIdentity) -> None:
        """States that a replica holds nothing more: it is closed."""
        for kind in (BUFFERS, INDEX, TOMBSTONES, STORES):
            self.ledger.hold(kind, _owner(identity), 0)


def opening_bytes(directory: Path) -> int:
    """What a replica will hold once it is open, from the sizes of its files, before anything is opened."""
    indexes = sum(path.stat().st_size for path in directory.glob("segments/*/index-*"))
    return REPLICA_BYTES + indexes


def _owner(identity: ReplicaIdentity) -> str:
    return f"{identity.collection_uid}/{identity.shard}"
