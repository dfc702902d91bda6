"""How many resident bytes a sealed vector costs, seen from within and from without.

From within: what shard servers count for codes, row ids, tombstones and buffers (GetCluster). From without: how much
their resident memory grew since they were empty, less the pages of mapped files, which the kernel takes back when it
needs them: raw vectors are such pages. The second figure also holds what does not grow with the points: RocksDB's
tables in memory and its cache, thread stacks, and what the allocator keeps. The bar is on the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import vectorfleet
from loadtest.records import Record, table

BYTES_A_VECTOR_MAX = 48.0


@dataclass(frozen=True)
class Resident:
    """Resident memory of all shard servers."""

    total: int
    mapped: int
    """Of those, pages of mapped files."""

    @property
    def own(self) -> int:
        """What the kernel cannot take back."""
        return self.total - self.mapped


def resident(client: vectorfleet.Client) -> Resident:
    """Asks all nodes."""
    nodes = client.cluster().nodes
    return Resident(sum(node.resident_bytes for node in nodes), sum(node.mapped_resident_bytes for node in nodes))


def measure(client: vectorfleet.Client, name: str, before: Resident, record: Record) -> bool:
    """Prints what a settled collection costs; returns whether the bar was met.

    Args:
        client: of the cluster.
        name: a collection that is settled, the only one.
        before: `resident` while the cluster was empty.
        record: takes the figures.
    """
    replicas = [one for shard in client.cluster().shards if shard.collection == name for one in shard.replicas]
    points = sum(one.points for one in replicas)
    counted = sum(one.index_bytes + one.memory_bytes for one in replicas) / points
    now = resident(client)
    grown = (now.own - before.own) / points
    record.add(
        "memory", data=name, points=points, counted_bytes_a_vector=counted, grown_bytes_a_vector=grown,
        mapped_bytes_a_vector=now.mapped / points, before_own_bytes=before.own, now_own_bytes=now.own,
    )  # fmt: skip
    rows = [
        (f"index and tombstones, as counted by the shard servers (bar: {BYTES_A_VECTOR_MAX:g})", counted),
        ("growth of resident memory that is not mapped files", grown),
        ("resident pages of mapped files, which can be taken back", now.mapped / points),
        ("on disk", sum(one.disk_bytes for one in replicas) / points),
    ]
    title = f"Memory: {points:,} vectors of {name}, {len(replicas)} replicas"
    print(table(title, [{"bytes per vector": what, "": f"{value:.1f}"} for what, value in rows]), flush=True)
    return counted <= BYTES_A_VECTOR_MAX
