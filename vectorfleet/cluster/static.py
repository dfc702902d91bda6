"""A coordinator that keeps its state in memory: for unit tests, never for a cluster.

`StaticCluster` plays etcd; each `StaticCoordinator` on it plays one process's connection, so that a test can have several
routers and nodes. It keeps etcd's rules: an epoch that grows with every change, compare-and-swap on `mod_revision`, a
registration and a leadership that end with `close`. Changes are visible at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from vectorfleet.cluster.coordinator import Conflict
from vectorfleet.cluster.key_record import KeyRecord
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo
from vectorfleet.errors import Unavailable


class StaticCluster:
    """What all coordinators of one test share.

    Attributes:
        state: the current one.
        away: True lets changes fail as they do while etcd cannot be reached.
        silence_s: what its coordinators say of it.
    """

    def __init__(self, state: ClusterState | None = None) -> None:
        """Starts from a state, or from an empty one."""
        self.state = state or ClusterState(epoch=1)
        self.away = False
        self.silence_s = 0.0
        self._changed = asyncio.Event()
        self._candidates: list[StaticCoordinator] = []

    def change(
        self,
        *,
        nodes: Mapping[str, NodeInfo] | None = None,
        collections: Mapping[str, CollectionRecord] | None = None,
        deleted_uids: frozenset[str] | None = None,
        keys: Mapping[str, KeyRecord] | None = None,
    ) -> int:
        """Replaces parts of the state, one epoch on; returns that epoch. Tests may call it to stage a situation."""
        now = self.state
        self.state = replace(
            now,
            epoch=now.epoch + 1,
            nodes=now.nodes if nodes is None else MappingProxyType(dict(nodes)),
            collections=now.collections if collections is None else MappingProxyType(dict(collections)),
            deleted_uids=now.deleted_uids if deleted_uids is None else deleted_uids,
            controller=self._candidates[0].candidate if self._candidates else "",
            keys=now.keys if keys is None else MappingProxyType(dict(keys)),
        )
        self._changed.set()
        self._changed = asyncio.Event()
        return self.state.epoch

    async def changed(self, epoch: int) -> ClusterState:
        """Waits for a state above `epoch`."""
        while self.state.epoch <= epoch:
            await self._changed.wait()
        return self.state

    def leader(self) -> StaticCoordinator | None:
        """The coordinator that leads: the first that stood and has not closed."""
        return self._candidates[0] if self._candidates else None

    def stand(self, coordinator: StaticCoordinator) -> None:
        """Adds a candidate."""
        if coordinator not in self._candidates:
            self._candidates.append(coordinator)
            self.change()

    def leave(self, coordinator: StaticCoordinator) -> None:
        """Takes back a candidate and its registration, as the end of a lease does."""
        self._candidates = [other for other in self._candidates if other is not coordinator]
        self.change(nodes={key: node for key, node in self.state.nodes.items() if key != coordinator.node_id})


class StaticCoordinator:
    """One process's view of a `StaticCluster`; implements `Coordinator`."""

    def __init__(self, cluster: StaticCluster | None = None) -> None:
        """Joins a cluster, or has one of its own."""
        self.cluster = cluster or StaticCluster()
        self.candidate = ""
        self.node_id = ""

    @property
    def state(self) -> ClusterState:
        """The latest snapshot."""
        return self.cluster.state

    @property
    def connected(self) -> bool:
        """False while the cluster plays away."""
        return not self.cluster.away

    def silence_s(self, now_s: float) -> float:
        """As the cluster was told to say."""
        return self.cluster.silence_s

    @property
    def leading(self) -> bool:
        """Whether this one stood first."""
        return self.cluster.leader() is self

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Gives up leadership and the registration."""
        self.cluster.leave(self)

    async def changed(self, epoch: int) -> ClusterState:
        """Waits until the state's epoch is above `epoch`."""
        return await self.cluster.changed(epoch)

    async def register(self, node: NodeInfo) -> None:
        """Adds the node until `close`."""
        self.node_id = node.id
        self.cluster.change(nodes={**self.state.nodes, node.id: node})

    async def campaign(self, candidate: str) -> None:
        """Leads once all that stood before have closed."""
        self.candidate = candidate
        self.cluster.stand(self)

    async def create_collection(self, record: CollectionRecord) -> None:
        """Stores a new collection. Raises `Conflict` where the name is taken."""
        self._reach()
        if record.name in self.state.collections:
            raise Conflict(f"collection {record.name} exists")
        self._put(record)

    async def update_collection(self, record: CollectionRecord) -> None:
        """Replaces a collection that is still at the record's `mod_revision`. Raises `Conflict`."""
        self._reach()
        self._compare(record)
        self._put(record)

    async def delete_collection(self, record: CollectionRecord) -> None:
        """Removes a collection that is still at the record's `mod_revision`; one that is gone is fine. Raises `Conflict`."""
        self._reach()
        if record.name not in self.state.collections:
            return
        self._compare(record)
        kept = {name: other for name, other in self.state.collections.items() if name != record.name}
        self.cluster.change(collections=kept, deleted_uids=self.state.deleted_uids | {record.uid})

    async def create_key(self, record: KeyRecord) -> None:
        """Stores a new API key. Raises `Conflict` where the id is taken."""
        self._reach()
        if record.id in self.state.keys:
            raise Conflict(f"key {record.id} exists")
        stored = record.at(self.state.epoch + 1)
        self.cluster.change(keys={**self.state.keys, record.id: stored})

    async def delete_key(self, record: KeyRecord) -> None:
        """Removes an API key; one that is gone is fine."""
        self._reach()
        self.cluster.change(keys={key_id: key for key_id, key in self.state.keys.items() if key_id != record.id})

    def _reach(self) -> None:
        if self.cluster.away:
            raise Unavailable("the coordinator is away", reason="COORDINATOR_UNAVAILABLE")

    def _compare(self, record: CollectionRecord) -> None:
        current = self.state.collections.get(record.name)
        if current is None or current.mod_revision != record.mod_revision:
            raise Conflict(f"collection {record.name} changed meanwhile")

    def _put(self, record: CollectionRecord) -> None:
        stored = replace(record, mod_revision=self.state.epoch + 1)
        self.cluster.change(collections={**self.state.collections, record.name: stored})
