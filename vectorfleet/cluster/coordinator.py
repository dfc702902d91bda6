"""What routers and nodes need of a coordinator: the interface, which lives apart from etcd.

`EtcdCoordinator` is the real one; `StaticCoordinator` keeps the same state in memory, for unit tests.

Invariant: `state` is always a complete, consistent snapshot, at or behind etcd; it never goes backwards, and stays readable
while etcd is away. Changes go through compare-and-swap, so that two writers cannot overwrite each other.
"""

from __future__ import annotations

from typing import Protocol

from vectorfleet.cluster.key_record import KeyRecord
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo


class Conflict(Exception):
    """A compare-and-swap lost: the record changed meanwhile, exists already, or is gone. Read `state` again."""


class Coordinator(Protocol):
    """Cluster membership and the shard map. All methods are safe from one event loop."""

    @property
    def state(self) -> ClusterState:
        """The latest snapshot; reading it costs nothing."""

    @property
    def connected(self) -> bool:
        """Whether the last exchange with the coordinator's servers went well."""

    def silence_s(self, now_s: float) -> float:
        """Seconds since the coordinator's servers last answered, at `now_s` of the monotonic clock."""

    @property
    def leading(self) -> bool:
        """Whether this process holds the controller election."""

    async def start(self) -> None:
        """Loads the first state and begins to watch; retries until the coordinator answers."""

    async def close(self) -> None:
        """Stops watching; gives up leadership and the registration at once."""

    async def changed(self, epoch: int) -> ClusterState:
        """Waits until the state's epoch is above `epoch`, and returns that state."""

    async def register(self, node: NodeInfo) -> None:
        """Registers this process as a node under a lease, kept alive, and granted again when it was lost."""

    async def campaign(self, candidate: str) -> None:
        """Stands for election as controller in the background, for as long as the process lives; see `leading`."""

    async def create_collection(self, record: CollectionRecord) -> None:
        """Stores a new collection. Raises `Conflict` where the name is taken, `Unavailable` where etcd is away."""

    async def update_collection(self, record: CollectionRecord) -> None:
        """Replaces a collection whose `mod_revision` is still the record's. Raises `Conflict` or `Unavailable`."""

    async def delete_collection(self, record: CollectionRecord) -> None:
        """Removes a collection and marks its uid as deleted, in one transaction. Raises `Conflict` or `Unavailable`."""

    async def create_key(self, record: KeyRecord) -> None:
        """Stores a new API key. Raises `Conflict` where the id is taken, `Unavailable` where etcd is away."""

    async def delete_key(self, record: KeyRecord) -> None:
        """Removes an API key; one that is gone already is fine. Raises `Conflict` or `Unavailable`."""
