"""One replica's life, over and over, each time with another file operation that fails. Preloads failing_files.c: see `faults`.

`python -m tests.unit.engine.failing_workload FOLDER MODE [FIRST]` goes through every N until a life ends before its Nth
operation, and prints how many there were. It ends with a traceback and the N at the first acknowledged write that is lost,
unclear error, or replica that does not take writes again once the disk does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shard_server.engine import upkeep
from shard_server.engine.index import Codebook, train_codebook
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import delete, identity, maintain, upsert
from vectorfleet.errors import VectorfleetError
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

DIM = 4
CHANGES, SYNCS, READS, MAPS = 1, 2, 4, 8
MODES = {
    # error, a write is cut short first, all that follow fail too, the kinds that fail, a failed sync forgets: see failing_files.c
    "full": (errno.ENOSPC, True, True, CHANGES | SYNCS, False),
    "full-once": (errno.ENOSPC, False, False, CHANGES | SYNCS, False),
    "broken-once": (errno.EIO, False, False, CHANGES | SYNCS, False),
    "short-once": (errno.ENOSPC, True, False, CHANGES | SYNCS, False),
    "forgotten-once": (errno.EIO, False, False, SYNCS, True),
    "unreadable-once": (errno.EIO, False, False, READS, False),
    "unmappable-once": (errno.ENOMEM, False, False, MAPS, False),
}
REASONS = {
    errno.ENOSPC: {"DISK_FULL"},
    errno.EIO: {"SHARD_UNAVAILABLE", "DATA_LOSS"},
    errno.ENOMEM: {"SHARD_UNAVAILABLE"},
}
SETTINGS = EngineSettings(seal_points=8192, seal_age_s=0.0, idle_s=0.0, min_free_bytes=0)
VECTORS = np.random.default_rng(5).standard_normal((2000, DIM)).astype(np.float32)
Points = dict[str, np.ndarray]


upkeep.ENCODE_ROWS_MIN = 32  # a life of few points is a short one


def numbered(first: int, last: int, shift: int = 0) -> Points:
    return {f"{number:04d}": VECTORS[number + shift] for number in range(first, last)}


class Life:
    """A replica, what it has acknowledged, and what may have happened besides."""

    def __init__(self, folder: Path, faults: ctypes.CDLL, codebook: Codebook, mode: str) -> None:
        self.folder, self.faults, self.codebook = folder, faults, codebook
        self.error, self.short, self.sticky, self.kinds, self.forgets = MODES[mode]
        self.may: dict[str, set[bytes | None]] = {}
        self.seen: Counter[str] = Counter()
        self.now_s = 0.0
        self.replica: Replica | None = None

    @contextlib.contextmanager
    def clear_errors(self) -> Iterator[None]:
        failure: Exception | None = None
        try:
            yield
        except (VectorfleetError, OSError) as error:
            failure = error
        if isinstance(failure, VectorfleetError):
            assert failure.reason in REASONS[self.error], f"{failure!r}"
            # Of a read that fails while it opens, RocksDB tells in words of its own.
            assert self.kinds == READS or os.strerror(self.error) in failure.message, failure.message
            self.seen[failure.reason] += 1
        elif isinstance(failure, OSError):
            assert failure.errno == self.error, f"{failure!r}"
            self.seen["OSError"] += 1

    def write(self, mutation: storage_pb2.Mutation, points: dict[str, np.ndarray | None]) -> bool:
        assert self.replica is not None
        news = {point_id: None if vector is None else vector.tobytes() for point_id, vector in points.items()}
        done = False
        with self.clear_errors():
            try:
                self.replica.commit([mutation], term=1)
                done = True
            finally:
                for point_id, new in news.items():
                    self.may[point_id] = {new} if done else self.may.get(point_id, {None}) | {new}
        return done

    def put(self, points: Points) -> bool:
        return self.write(upsert(points), dict(points))

    def maintain(self) -> None:
        assert self.replica is not None
        self.now_s += 1.0
        with self.clear_errors():
            maintain(self.replica, self.now_s)

    def check(self) -> None:
        """What is found is what was acknowledged, or else what may have happened; and the search sees the same."""
        assert self.replica is not None
        points, end = self.replica.scan("", 10_000, with_vector=True)
        assert end
        found = {point.id: point.vector for point in points}
        wrong = [name for name in self.may.keys() | found.keys() if found.get(name) not in self.may.get(name, {None})]
        assert not wrong, f"{len(wrong)} points are not as acknowledged, as {sorted(wrong)[:3]}"
        hits = self.replica.search(VECTORS[:1], 10_000, exact=True)
        assert sorted(hits.ids) == sorted(found), "the search sees something else than the scan"

    def look(self) -> None:
        """As `check`, where a read may fail."""
        with self.clear_errors():
            self.check()

    def open(self) -> None:
        self.replica = None
        with self.clear_errors():
            self.replica = Replica.open(self.folder, identity(DIM), SETTINGS, None)

    def live(self, n: int) -> int:
        """Returns the operations counted."""
        self.faults.faults_arm(
            str(self.folder).encode(), n, self.error, self.short, self.sticky, self.kinds, self.forgets
        )
        self.open()
        if self.replica is None:
            count = self.faults.faults_disarm()
            self.open()
            assert self.replica is not None, "it does not open once the disk is whole again"
            self.check()
        else:
            self.work()
            count = self.faults.faults_disarm()
        self.recover()
        self.replica.close()
        self.open()
        assert self.replica is not None
        self.check()
        self.replica.close()
        return int(count)

    def work(self) -> None:
        assert self.replica is not None
        self.put(numbered(0, 64))
        self.replica.use_codebook(self.codebook)
        self.maintain()
        gone = [f"{number:04d}" for number in range(0, 64, 8)]
        self.write(delete(*gone), dict.fromkeys(gone))
        self.look()
        self.put(numbered(1, 20, shift=500))
        self.put(numbered(64, 100))
        self.maintain()
        self.maintain()
        self.look()
        self.put(numbered(100, 104))
        self.look()

    def recover(self) -> None:
        """The disk is whole again: background work brings the replica back, by itself."""
        # But a read that failed is taken for damage, which only a restart looks at again.
        if self.kinds == READS:
            self.replica.close()
            self.open()
            assert self.replica is not None
        for _ in range(5):
            self.maintain()
            if self.put(numbered(140, 142)):
                break
        else:
            raise AssertionError("it takes no writes though the disk does")
        while not self.replica.settled:
            self.maintain()
        self.check()
        if self.kinds == MAPS:
            there = sum(1 for _ in (self.folder / "segments").iterdir())
            assert there == self.replica.stats().segments, "segments that were written in vain are still there"


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(exist_ok=True)
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    faults = ctypes.CDLL(None)
    faults.faults_disarm.restype = ctypes.c_long
    faults.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, *[ctypes.c_int] * 5]
    about = identity(DIM)
    content = train_codebook(VECTORS, kind=about.kind, metric=types_pb2.METRIC_L2, nlist=4, m=2, seed=1)
    codebook = Codebook.load(content, 1)
    seen: Counter[str] = Counter()
    for n in itertools.count(first):
        life = Life(folder / "replica", faults, codebook, mode)
        try:
            count = life.live(n)
        except BaseException:
            print(f"operation {n} of {mode}: {dict(life.seen)}", file=sys.stderr)
            raise
        seen += life.seen
        shutil.rmtree(life.folder)
        if count < n:
            break
    print(json.dumps({"operations": count, "errors": seen}))


if __name__ == "__main__":
    main()
