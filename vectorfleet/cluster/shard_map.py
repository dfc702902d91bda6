"""The shard map: which collections exist, which node holds which shard, stamped with an epoch.

Plain immutable values, without I/O: a coordinator fills them from etcd, routers route by them, nodes open and close
replicas by them, the controller computes the next ones. The JSON forms are what etcd holds; unknown keys are passed over,
so that a newer writer does not stop an older reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from vectorfleet.cluster.key_record import KeyRecord

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A registered shard server. Present in the state exactly while its lease lives."""

    id: str
    address: str
    """host:port, as others reach it."""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ShardAssignment:
    """One shard: the hash range that it owns (both ends included) and the nodes that hold it."""

    shard: int
    hash_first: int
    hash_last: int
    term: int = 0
    primary: str = ""
    """Node id; "" while the controller has not assigned the shard."""
    replicas: tuple[str, ...] = ()
    in_sync: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """The index of a collection, as its creator asked for it; 0 leaves the choice to each training."""

    kind: int = 1
    """`vectorfleet.v1.IndexKind` as a number."""
    nlist: int = 0
    m: int = 0
    train_points: int = 10_000


@dataclass(frozen=True, slots=True)
class CodebookRecord:
    """The collection's current codebook: nodes fetch the file from one another and check it by its checksum."""

    version: int
    checksum: str
    """XXH3-64 of the file, 16 hexadecimal digits."""
    nlist: int
    m: int
    trained_points: int
    node: str
    """The node that trained it and surely has it."""
    trained_seqno: int = 0
    """Seqnos of all shards together, when it was trained; 0: not known."""


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """Where the replicas of a collection come from while it is restored; gone once all of them serve."""

    source: str
    """The destination of backups."""
    backup: str
    """The id of one of them."""
    uid: str
    """The collection's uid in the backup."""


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """One collection: its specification, its shards and its codebook. One key in etcd, so that it changes atomically."""

    name: str
    uid: str
    dim: int
    metric: int
    """`vectorfleet.v1.Metric` as a number."""
    shards: tuple[ShardAssignment, ...]
    replicas: int = 1
    index: IndexConfig = field(default_factory=IndexConfig)
    embedding_model: str = ""
    create_time_ms: int = 0
    codebook: CodebookRecord | None = None
    restoring: RestoreRecord | None = None
    """Not None: it is being restored, and nobody but its nodes and its restorer may know of it yet."""
    mod_revision: int = 0
    """etcd's revision of the last change: the compare of compare-and-swap. Not stored."""

    @property
    def assigned(self) -> bool:
        """Whether every shard has a primary."""
        return all(shard.primary for shard in self.shards)

    def to_json(self) -> bytes:
        """The value that etcd holds."""
        body = asdict(self)
        del body["mod_revision"]
        return json.dumps({"format_version": FORMAT_VERSION, **body}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, value: bytes, mod_revision: int = 0) -> CollectionRecord:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the value is not JSON, or of a format version that this release does not know.
        """
        body = _checked(value, "collection")
        codebook, restoring = body.get("codebook"), body.get("restoring")
        shards = tuple(
            _known(ShardAssignment, {**shard, "replicas": tuple(shard["replicas"]), "in_sync": tuple(shard["in_sync"])})
            for shard in body["shards"]
        )
        known: CollectionRecord = _known(
            cls,
            {
                **body,
                "shards": shards,
                "index": _known(IndexConfig, body["index"]),
                "codebook": None if codebook is None else _known(CodebookRecord, codebook),
                "restoring": None if restoring is None else _known(RestoreRecord, restoring),
            },
        )
        return replace(known, mod_revision=mod_revision)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All that the coordinator knows at one revision of etcd: the shard map and the nodes that are alive."""

    epoch: int = 0
    """etcd's revision."""
    nodes: Mapping[str, NodeInfo] = field(default_factory=lambda: MappingProxyType({}))
    collections: Mapping[str, CollectionRecord] = field(default_factory=lambda: MappingProxyType({}))
    """By name."""
    deleted_uids: frozenset[str] = frozenset()
    """Collections deleted for good: the only ones whose files a node may remove."""
    controller: str = ""
    """The router that leads; "" while there is none."""
    keys: Mapping[str, KeyRecord] = field(default_factory=lambda: MappingProxyType({}))
    """API keys by id."""

    def by_uid(self, uid: str) -> CollectionRecord | None:
        """Finds a collection by its uid."""
        return next((record for record in self.collections.values() if record.uid == uid), None)


def node_to_json(node: NodeInfo) -> bytes:
    """The value of a node's key in etcd."""
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(node)}, separators=(",", ":")).encode()


def node_from_json(value: bytes) -> NodeInfo:
    """Reads what `node_to_json` wrote; raises `ValueError` as `CollectionRecord.from_json` does."""
    node: NodeInfo = _known(NodeInfo, _checked(value, "node"))
    return node


def _checked(value: bytes, what: str) -> dict[str, Any]:
    body = json.loads(value)
    version = body.get("format_version") if isinstance(body, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{what} record has format version {version}; this release reads {FORMAT_VERSION}")
    return dict(body)


def _known(cls: Any, body: Mapping[str, Any]) -> Any:
    return cls(**{name: body[name] for name in cls.__dataclass_fields__ if name in body})
