"""What a node says of itself and of its replicas; the controller and `vectorfleet status` read it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from shard_server.hosted import HostedReplica
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.ledger import Ledger
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb

if TYPE_CHECKING:
    from shard_server.engine.answers import ReplicaStats
    from shard_server.engine.replica import Replica


def describe_node(
    node_id: str,
    address: str,
    version: str,
    replicas: int,
    unknown_collections: Sequence[str],
    data: Path,
    ledger: Ledger,
) -> cluster_pb.Node:
    """Describes this process. Resident pages of mapped files are the kernel's to take back; they are told apart."""
    memory = psutil.Process().memory_info()
    return cluster_pb.Node(
        id=node_id,
        address=address,
        live=True,
        replicas=replicas,
        resident_bytes=memory.rss,
        mapped_resident_bytes=memory.shared,
        disk_free_bytes=shutil.disk_usage(data).free,
        version=version,
        unknown_collections=unknown_collections,
        memory_used_bytes=ledger.used_bytes,
        memory_limit_bytes=ledger.limit_bytes,
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """What only the engine knows of an open replica."""

    stats: ReplicaStats
    settled: bool
    trouble: str
    """Why it takes no writes; "" where it does."""


def measure(replica: Replica) -> Measured:
    """Asks the engine for its sizes, whether background work is left, and what ails it; blocks."""
    return Measured(replica.stats(), replica.settled, replica.trouble)


def describe_replica(held: HostedReplica, node_id: str, measured: Measured | None) -> pb.ReplicaDescription:
    """Describes one replica.

    Args:
        held: the replica.
        node_id: this node.
        measured: what `measure` returned; None: it is not open.
    """
    state = cluster_pb.ReplicaState(
        node=node_id,
        primary=held.assignment.primary == node_id,
        status=held.status,
        message=held.message,
    )
    if measured is not None:
        stats = measured.stats
        state.message = held.message or measured.trouble
        state.applied_seqno = stats.applied_seqno
        state.points = stats.points
        state.indexed_points = stats.indexed_points
        state.buffered_points = stats.buffered_points
        state.tombstones = stats.tombstones
        state.segments = stats.segments
        state.codebook_version = stats.codebook_version
        state.disk_bytes = stats.disk_bytes
        state.index_bytes = stats.index_bytes
        state.memory_bytes = stats.memory_bytes
    described = pb.ReplicaDescription(
        collection_uid=held.uid,
        shard=held.shard,
        state=state,
        settled=measured is not None and measured.settled,
        failure_reason=held.failure_reason,
    )
    if held.transfer is not None:
        described.restore_bytes_total = held.transfer.bytes_total
        described.restore_bytes_done = held.transfer.bytes_done
    return described
