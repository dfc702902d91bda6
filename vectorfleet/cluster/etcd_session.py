"""What this process holds in etcd for as long as it lives: its registration as a node and its part in the election.

Both stand under one lease. One loop renews the lease, and makes good whatever is missing: a lease that lapsed is granted
again, the node's key is written again, and when the controller's key is gone this process tries to take it (created only if
absent, so one candidate wins). The loop is woken by the state's changes and otherwise runs three times per time to live.

Invariant: `leads` is true only while etcd cannot have ended the lease yet by this process's own clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from vectorfleet.cluster.etcd_client import EtcdClient, LeaseGone
from vectorfleet.cluster.etcd_records import Keys
from vectorfleet.cluster.shard_map import ClusterState, NodeInfo, node_to_json
from vectorfleet.errors import VectorfleetError

RETRY_PAUSE_S: Final = 0.5
REVOKE_TIMEOUT_S: Final = 2.0
_log = logging.getLogger(__name__)


class EtcdSession:
    """One process's lease and the keys under it."""

    def __init__(self, client: EtcdClient, keys: Keys, ttl_s: int, exchanged: Callable[[bool], None]) -> None:
        """Holds nothing yet.

        Args:
            client: the way to etcd.
            keys: of this cluster.
            ttl_s: seconds after which etcd takes a silent process for dead.
            exchanged: told of each exchange whether it went well.
        """
        self._client = client
        self._keys = keys
        self._ttl_s = ttl_s
        self._exchanged = exchanged
        self._state = ClusterState()
        self._wake = asyncio.Event()
        self._lease = 0
        self._lease_until = 0.0
        self._node: NodeInfo | None = None
        self._rival: NodeInfo | None = None
        self._candidate = ""
        # The revisions at which our keys were written under the present lease; 0: they are missing.
        self._registered = 0
        self._elected = 0
        self._registration = asyncio.Event()

    async def register(self, node: NodeInfo) -> int:
        """Registers a node; returns the revision once etcd has it."""
        self._node = node
        self._registered = 0
        self._registration.clear()
        self._wake.set()
        await self._registration.wait()
        return self._registered

    def campaign(self, candidate: str) -> None:
        """Stands for election from now on."""
        self._candidate = candidate
        self._wake.set()

    @property
    def leads(self) -> bool:
        """Whether this process holds the election."""
        if not self._elected or time.monotonic() >= self._lease_until:
            return False
        # Until the watch has caught up with our victory, the state still shows what was before it.
        return self._state.epoch < self._elected or self._state.controller == self._candidate

    def observe(self, state: ClusterState) -> None:
        """Takes note of a new state, and wakes the loop where something of ours is missing in it."""
        self._state = state
        if self._node is not None and self._registered and state.epoch >= self._registered:
            self._watch_over_registration(self._node, state.nodes.get(self._node.id))
        if self._elected and state.epoch >= self._elected and state.controller != self._candidate:
            _log.warning("%s does not lead any more", self._candidate)
            self._elected = 0
        if self._candidate and not self._elected and not state.controller:
            self._wake.set()

    async def run(self) -> None:
        """Keeps everything in place until it is cancelled."""
        while True:
            self._wake.clear()
            pause_s = None if self._node is None and not self._candidate else self._ttl_s / 3
            if pause_s is not None:
                try:
                    await self._renew()
                    await self._write_registration()
                    await self._stand()
                    self._exchanged(True)
                except LeaseGone:
                    _log.warning("the lease in etcd is gone: registering again")
                    self._lose_lease()
                    continue
                except VectorfleetError as error:
                    self._exchanged(False)
                    _log.warning("the lease in etcd cannot be renewed: %s", error.message)
                    pause_s = RETRY_PAUSE_S
                except Exception:
                    self._exchanged(False)
                    _log.exception("holding the lease in etcd failed")
                    pause_s = RETRY_PAUSE_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Ends the lease, so that others need not wait until it lapses. Call when `run` has ended."""
        lease = self._lease
        self._lose_lease()
        if lease:
            try:
                await self._client.revoke(lease, REVOKE_TIMEOUT_S)
            except VectorfleetError as error:
                _log.warning("the lease in etcd is left to lapse: %s", error.message)

    async def _renew(self) -> None:
        began = time.monotonic()
        if self._lease:
            # Shorter than the time to live, so that there is time for another try.
            ttl_s = await self._client.keep_alive(self._lease, self._ttl_s / 3)
        else:
            self._lease, ttl_s = await self._client.grant(self._ttl_s)
        self._lease_until = began + ttl_s

    async def _write_registration(self) -> None:
        node = self._node
        if node is None or self._registered:
            return
        revision = await self._client.put(self._keys.node(node.id), node_to_json(node), self._lease)
        if node is self._node:
            self._registered = revision
            self._registration.set()
            _log.info("registered as node %s at %s", node.id, node.address)

    async def _stand(self) -> None:
        if not self._candidate or self._elected or self._state.controller not in ("", self._candidate):
            return
        outcome = await self._client.swap(self._keys.controller, 0, self._candidate.encode(), lease=self._lease)
        if outcome.swapped:
            self._elected = outcome.revision
        elif outcome.current is not None and outcome.current.lease == self._lease:
            self._elected = outcome.current.mod_revision  # an earlier attempt won, and its answer was lost
        if self._elected:
            _log.info("%s leads", self._candidate)

    def _lose_lease(self) -> None:
        self._lease = self._registered = self._elected = 0

    def _watch_over_registration(self, node: NodeInfo, shown: NodeInfo | None) -> None:
        if shown is None:
            self._registered = 0
            self._wake.set()
        elif shown != node and shown != self._rival:
            _log.error("another process registered as node %s, at %s: one of the two must stop", node.id, shown.address)
        self._rival = shown if shown != node else None
