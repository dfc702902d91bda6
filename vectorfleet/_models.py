"""What the client answers with: plain values, frozen, without a trace of gRPC or protobuf in their public face.

`SearchResult` is the one with a mind of its own: it keeps the answer in columns, as it came, and makes arrays and `Hit` objects
when they are first asked for, so that a benchmark of a million hits pays for ids and scores alone.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["l2", "dot", "cosine"]
IndexKind = Literal["ivf_pq_fast_scan", "ivf_pq", "flat"]
ReplicaStatus = Literal["serving", "loading", "failed", "unreachable"]

FLOAT32: Final = np.dtype("<f4")
"""Little-endian float32: how a vector travels."""


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How a collection encodes its vectors for the first pass of a search; the defaults suit most data.

    Attributes:
        kind: "ivf_pq_fast_scan" (4-bit codes scanned with SIMD), "ivf_pq" (8-bit codes) or "flat" (every search is exact).
        nlist: inverted lists, 1 to 65,536; 0: about 4·√(points of a shard), chosen at each training.
        m: PQ sub-quantisers, a divisor of the dimension; 0: dim / 2, or dim / 4 for 8-bit codes.
        train_points: the codebook is trained at this many points, 256 to 10,000,000; 0: 10,000.
    """

    kind: IndexKind = "ivf_pq_fast_scan"
    nlist: int = 0
    m: int = 0
    train_points: int = 0


@dataclass(frozen=True, slots=True)
class MissingShard:
    """A shard that did not answer: `reason` is one of docs/errors.md, `message` is for people."""

    shard: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which shards an answer speaks for."""

    shards_total: int = 0
    shards_answered: int = 0
    missing: tuple[MissingShard, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return self.shards_answered >= self.shards_total


@dataclass(frozen=True, slots=True)
class Codebook:
    """The codebook that a collection's shards share; version 0: none yet, searches are exact."""

    version: int = 0
    checksum: str = ""
    nlist: int = 0
    m: int = 0
    trained_points: int = 0


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far the background work on a collection has come.

    Attributes:
        points: live points.
        indexed_points: of those, in sealed segments under the current codebook.
        buffered_points: searchable and durable, but not sealed yet.
        segments: sealed parts, over all shards.
        tombstones: rows of deleted or overwritten points that compaction has not dropped yet.
        codebook: the current one.
        settled: nothing is left to train, seal, encode or merge.
    """

    points: int = 0
    indexed_points: int = 0
    buffered_points: int = 0
    segments: int = 0
    tombstones: int = 0
    codebook: Codebook = field(default_factory=Codebook)
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, as it stood when it was asked for.

    `progress` and `coverage` are None in a listing; `get_collection` has them.
    """

    name: str
    uid: str
    dim: int
    metric: Metric
    shards: int
    replicas: int
    index: IndexOptions
    embedding_model: str
    create_time: datetime.datetime
    progress: IndexProgress | None = None
    coverage: Coverage | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A stored point.

    Attributes:
        id: its id.
        version: grows with every write to the point.
        payload: its JSON object, or None where it has none.
        vector: float32 (dim,), read-only; None where it was not asked for.
    """

    id: str
    version: int
    payload: dict[str, Any] | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A point found.

    Attributes:
        id: the point's id.
        score: L2 distance (smaller is nearer), or DOT or COSINE similarity (larger is nearer).
        payload: its JSON object; None where it has none or was not asked for.
        vector: float32 (dim,), read-only; None where it was not asked for.
    """

    id: str
    score: float
    payload: dict[str, Any] | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What an upsert did: `upserted` points; a search that carries `consistency_token` sees all of them."""

    upserted: int
    consistency_token: bytes


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What a delete did: `deleted` points existed and are gone; the token is as that of an upsert."""

    deleted: int
    consistency_token: bytes


@dataclass(frozen=True, slots=True, eq=False)
class HitColumns:
    """The hits of all queries, a column each; those of query q are rows bounds[q] to bounds[q + 1], best first."""

    bounds: Sequence[int]
    ids: list[str]
    scores: NDArray[np.float32]
    payloads: Sequence[bytes]
    """Empty, or one a hit."""
    vectors: NDArray[np.float32] | None
    """float32 (hits, dim)."""

    def of_query(self, number: int) -> HitColumns:
        """The columns of one query."""
        begin, end = self.bounds[number], self.bounds[number + 1]
        return HitColumns(
            (0, end - begin),
            self.ids[begin:end],
            self.scores[begin:end],
            self.payloads[begin:end],
            None if self.vectors is None else self.vectors[begin:end],
        )


class SearchResult:
    """The answers to all queries of one search, in the order asked; `len()` is the number of queries.

    Attributes:
        coverage: which shards the answer speaks for; look at `coverage.complete`.
        matching: with a filter, how many points pass it on the shards that answered: below k, there were no more to
            find. Without: None.
    """

    def __init__(self, columns: HitColumns, k: int, coverage: Coverage, matching: int | None = None) -> None:
        self._columns = columns
        self._k = k
        self.coverage: Final = coverage
        self.matching: Final = matching

    def __len__(self) -> int:
        return len(self._columns.bounds) - 1

    def __repr__(self) -> str:
        answered = f"{self.coverage.shards_answered}/{self.coverage.shards_total}"
        return f"<SearchResult: {len(self)} queries, k={self._k}, {answered} shards>"

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """Ids, best first: an object array of str (queries, k), filled up with "" where fewer than k were found."""
        columns, shape = self._columns, (len(self), self._k)
        if len(columns.ids) == shape[0] * shape[1]:
            return np.array(columns.ids, dtype=object).reshape(shape)
        ids = np.full(shape, "", dtype=object)
        ids[self._found()] = columns.ids
        return ids

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """Scores of `ids`: float32 (queries, k), filled up with NaN."""
        columns, shape = self._columns, (len(self), self._k)
        if len(columns.scores) == shape[0] * shape[1]:
            return np.array(columns.scores, np.float32).reshape(shape)
        scores = np.full(shape, np.nan, dtype=np.float32)
        scores[self._found()] = columns.scores
        return scores

    @cached_property
    def hits(self) -> list[list[Hit]]:
        """For each query its hits, best first: at most k, and no id twice."""
        columns = self._columns
        scores = columns.scores.tolist()
        payloads = list(map(payload_of, columns.payloads)) or [None] * len(scores)
        vectors: Sequence[NDArray[np.float32] | None] = (
            [None] * len(scores) if columns.vectors is None else list(columns.vectors)
        )
        hits = list(map(Hit, columns.ids, scores, payloads, vectors))
        return [hits[begin:end] for begin, end in pairwise(columns.bounds)]

    def _found(self) -> NDArray[np.bool_]:
        """Which places of an array (queries, k) hold a hit."""
        return np.arange(self._k) < np.diff(self._columns.bounds)[:, None]


@dataclass(frozen=True, slots=True)
class NodeState:
    """One shard-server process, as the cluster sees it."""

    id: str
    address: str
    live: bool
    replicas: int
    resident_bytes: int
    mapped_resident_bytes: int
    """Of the resident bytes, pages of mapped files, which the kernel may take back."""
    disk_free_bytes: int
    version: str
    unknown_collections: tuple[str, ...] = ()
    memory_used_bytes: int = 0
    """Memory that it has promised, and what is set aside."""
    memory_limit_bytes: int = 0
    """What would grow beyond it is refused."""
    """Collections of which it has replicas on disk, while the shard map knows nothing of them."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One copy of a shard, on one node; `message` says why a replica failed."""

    node: str
    primary: bool
    status: ReplicaStatus
    message: str
    applied_seqno: int
    points: int
    indexed_points: int
    buffered_points: int
    tombstones: int
    segments: int
    codebook_version: int
    disk_bytes: int
    index_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard of one collection, and the range of hashes (both ends included) that it owns."""

    collection: str
    shard: int
    hash_first: int
    hash_last: int
    term: int
    replicas: tuple[ReplicaState, ...]


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """The cluster as one router knows it.

    Attributes:
        epoch: etcd's revision of the shard map.
        controller: the router that leads; "" where none is known.
        coordinator_connected: False while etcd cannot be reached: the map is the last one known.
        nodes: by id.
        shards: of all collections.
        router_used_bytes: of the calls that this router works on.
        router_limit_bytes: the most that it admits.
    """

    epoch: int
    controller: str
    coordinator_connected: bool
    nodes: tuple[NodeState, ...]
    shards: tuple[ShardState, ...]
    router_used_bytes: int = 0
    router_limit_bytes: int = 0


def payload_of(raw: bytes) -> dict[str, Any] | None:
    """Reads a payload as it travels; empty is none."""
    if not raw:
        return None
    payload: dict[str, Any] = json.loads(raw)
    return payload


def vector_of(raw: bytes) -> NDArray[np.float32] | None:
    """Reads a vector as it travels, without a copy; empty is none."""
    return np.frombuffer(raw, FLOAT32) if raw else None
