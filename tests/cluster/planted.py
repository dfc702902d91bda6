"""Shard servers with a bug in them, for the tests of those who look for bugs: `python -m tests.cluster.planted BUG ARGUMENT…`.

Each bug replaces a part of the real engine in a real process, before the server's own `main` runs: production code has no switch
for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from shard_server import checking
from shard_server.__main__ import main
from shard_server.engine.acknowledged import Acknowledged
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.store import Batch, Store
from shard_server.engine.upkeep import Upkeep
from shard_server.engine.view import SegmentView
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.local import LocalCluster


def skip_the_fsync() -> None:
    """Acknowledges what is not on disk.

    SIGKILL does not take the kernel's page cache away, so a write that merely was not synced would survive it. Here such a write
    bypasses RocksDB's log and stays in the process, until something is synced that comes after it: what a power cut would take,
    SIGKILL takes.
    """
    import rocksdict

    begin, write = Store.__init__, Batch.write

    def unlogged_begin(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self._truly_synced = self._synced
        self._synced = self._unsynced = rocksdict.WriteOptions()
        self._synced.disable_wal = True

    def flushing_write(self: Any, *, sync: bool) -> None:
        if not sync:
            write(self, sync=False)
            return
        store = self._store
        for family in (store._log, store._points, store._tombstones, store._meta):
            family.flush()
        store._db.write(self._batch, store._truly_synced)

    # A power cut takes the witness as well: it is not synced.
    Acknowledged.note = lambda self, seqno: None  # type: ignore[method-assign]
    Store.__init__ = unlogged_begin  # type: ignore[method-assign]
    Batch.write = flushing_write  # type: ignore[method-assign]


def forget_a_tombstone() -> None:
    """Compaction takes one dead row of each segment for a living one."""
    merge = Upkeep._merge

    def forgetful(part: SegmentView) -> SegmentView:
        dead = np.flatnonzero(~part.live.mask())
        return SegmentView(part.segment, LiveRows.all_of(part.segment.rows).without(dead[1:]))

    def forgetful_merge(self: Any, numbers: Sequence[int], *, idle: bool) -> None:
        state = self._state
        with state.lock:
            state.segments = tuple(
                forgetful(part) if part.segment.number in numbers and part.live.dead else part
                for part in state.segments
            )
        merge(self, numbers, idle=idle)

    Upkeep._merge = forgetful_merge  # type: ignore[method-assign]


def reorder_the_replay() -> None:
    """A restart applies the log's tail again, backwards."""
    log_after = Store.log_after

    def backwards(self: Store, seqno: int) -> Iterator[storage_pb2.LogEntry]:
        for entry in reversed(list(log_after(self, seqno))):
            upsert = entry.mutation.WhichOneof("kind") == "upsert"
            entry.first_seqno = seqno + 1
            seqno += len(entry.mutation.upsert.ids if upsert else entry.mutation.delete.ids)
            yield entry

    Store.log_after = backwards  # type: ignore[method-assign]
    Store.applied = lambda self: 0  # type: ignore[method-assign]


def check_nothing() -> None:
    """A node believes whatever it is sent."""
    checking.check_mutation = checking.check_search = lambda *_: None
    checking._check_vectors = lambda *_: None


BUGS: Final[Mapping[str, Callable[[], None]]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (skip_the_fsync, forget_a_tombstone, reorder_the_replay, check_nothing)
}


class SickCluster(LocalCluster):
    """A cluster whose shard servers all have the bug of the class's name: `SickCluster.with_bug(name)`."""

    bug = ""

    @classmethod
    def with_bug(cls, bug: str) -> type[SickCluster]:
        """The kind of cluster that has this bug."""
        return type(f"SickCluster({bug})", (cls,), {"bug": bug})

    def _command(self, name: str) -> list[str]:
        command = super()._command(name)
        if name.startswith("node"):
            at = command.index("shard_server")
            command[at : at + 1] = ["tests.cluster.planted", self.bug]
        return command


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    sys.exit(main())
