"""A replica without an engine, whose every call a test can hold up or make fail; and collections for it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shard_server.engine.state import Applied
from vectorfleet.cluster.placement import point_hash
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import storage_pb2

TIMEOUT_S = 10.0


@dataclass
class FakeReplica:
    """Counts what is done to it."""

    commits: list[int] = field(default_factory=list)
    """Mutations in each commit."""
    ids: list[str] = field(default_factory=list)
    codebooks: list[object] = field(default_factory=list)
    buffers: int = 0
    """Buffers that are to be sealed."""
    codebooks_in_use: frozenset[int] = frozenset()
    units: int = 0
    """Units of other background work that are left."""
    maintained: list[float] = field(default_factory=list)
    error: Exception | None = None
    closed: bool = False
    held: threading.Event = field(default_factory=threading.Event)
    """Cleared by a test that wants commits to wait."""
    improving: threading.Event = field(default_factory=threading.Event)
    """Cleared by a test that wants a unit of other background work to last."""

    def __post_init__(self) -> None:
        self.held.set()
        self.improving.set()

    @property
    def applied_seqno(self) -> int:
        return len(self.ids)

    def commit(self, mutations: Sequence[storage_pb2.Mutation], term: int, lap: Callable[[str], None]) -> list[Applied]:
        assert self.held.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        self.commits.append(len(mutations))
        outcomes = []
        for mutation in mutations:
            self.ids.extend(mutation.delete.ids)
            outcomes.append(Applied(len(self.ids), len(mutation.delete.ids)))
        return outcomes

    def use_codebook(self, codebook: object) -> None:
        self.codebooks.append(codebook)

    def seal(self, now_s: float) -> bool:
        if self.buffers == 0:
            return False
        self.buffers -= 1
        return True

    def improve(self, now_s: float) -> bool:
        self.maintained.append(now_s)
        assert self.improving.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        if self.units == 0:
            return False
        self.units -= 1
        return True

    def close(self) -> None:
        self.closed = True


def deletion(*ids: str) -> storage_pb2.Mutation:
    """The smallest mutation."""
    return storage_pb2.Mutation(delete=storage_pb2.DeleteBatch(ids=ids))


def collection(
    uid: str, nodes: Sequence[str], *, name: str = "", dim: int = 4, metric: int = 1, term: int = 1, kind: int = 1
) -> CollectionRecord:
    """A collection with one shard on each of `nodes`."""
    step = 2**64 // len(nodes)
    shards = tuple(
        ShardAssignment(number, number * step, (number + 1) * step - 1, term, node, (node,), (node,))
        for number, node in enumerate(nodes)
    )
    record = CollectionRecord(name or uid, uid, dim, metric, shards)
    return replace(record, index=replace(record.index, kind=kind))


def ids_of(shard: int, shards: int, count: int) -> list[str]:
    """Ids that a shard of `collection` owns, always the same ones."""
    owned = (f"{shard}-{n}" for n in itertools.count() if point_hash(f"{shard}-{n}") // (2**64 // shards) == shard)
    return list(itertools.islice(owned, count))


async def until(condition: Callable[[], object], what: str) -> None:
    """Waits until a condition holds."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 (any condition: there is no event to wait for)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None
