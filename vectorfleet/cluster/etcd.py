"""The coordinator on a real etcd: follows all keys below a prefix, changes them by compare-and-swap.

One loop keeps `state`: load all keys at one revision, watch from the next one on, and after any break (a member died, the
revision was compacted, etcd was silent) load again. Loading again, rather than watching on from the last revision, costs
one read per break and is right whatever happened meanwhile. Readers are never held up: while etcd is away they keep
the last state, and `connected` says so. etcd_session.py keeps what this process holds under its lease.

Invariant: the state's epoch only grows. An etcd that is behind it was wiped or restored from a backup: it is not followed, since
nobody here can tell which of its facts still hold; the log says so, and a restart of this process accepts it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from vectorfleet.cluster.coordinator import Conflict
from vectorfleet.cluster.etcd_client import VALUE_BYTES_MAX, EtcdClient, EtcdTimeouts, EtcdTls
from vectorfleet.cluster.etcd_records import Keys, after, loaded
from vectorfleet.cluster.etcd_session import EtcdSession
from vectorfleet.cluster.key_record import KeyRecord
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo
from vectorfleet.errors import ResourceExhausted, Unavailable, VectorfleetError

__all__ = ["DEFAULT_PREFIX", "LEASE_TTL_S", "EtcdCoordinator", "EtcdTimeouts", "EtcdTls"]

DEFAULT_PREFIX: Final = "/vectorfleet/"
LEASE_TTL_S: Final = 10
"""A node that dies is missed after this long; a pause of a process (swapping, a stopped machine) below it goes unnoticed."""
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 3.0
SEEN_TIMEOUT_S: Final = 2.0
"""How long a change waits until this process's own state shows it."""

_log = logging.getLogger(__name__)


class EtcdCoordinator:
    """One process's connection to etcd; implements `Coordinator`. To be used from one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: str = DEFAULT_PREFIX,
        *,
        tls: EtcdTls | None = None,
        username: str = "",
        password: str = "",
        lease_ttl_s: int = LEASE_TTL_S,
        timeouts: EtcdTimeouts | None = None,
    ) -> None:
        """Connects with `start`.

        Args:
            endpoints: host:port of one or more members of one etcd cluster.
            prefix: of all keys; ends in "/". Clusters that share an etcd have different ones.
            tls: None: in the clear.
            username: of etcd's own users; "": none.
            password: of that user.
            lease_ttl_s: seconds after which a silent process counts as dead; etcd allows no less than 2.
            timeouts: of calls and of a silent watch; None: the usual ones.

        Raises:
            ValueError: no endpoint, or a prefix that does not end in "/".
            OSError: a file of `tls` cannot be read.
        """
        self._keys = Keys(prefix)
        self._client = EtcdClient(endpoints, tls=tls, username=username, password=password, timeouts=timeouts)
        self._session = EtcdSession(self._client, self._keys, lease_ttl_s, self._exchanged)
        self._state = ClusterState()
        self._connected = False
        self._contact_s = time.monotonic()
        """Of the last exchange that went well; before the first: when this was made."""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def state(self) -> ClusterState:
        """The latest snapshot; before `start` returned: empty, with epoch 0."""
        return self._state

    @property
    def connected(self) -> bool:
        """Whether the last exchange with etcd went well."""
        return self._connected

    def silence_s(self, now_s: float) -> float:
        """Seconds since etcd last answered, at `now_s` of the monotonic clock."""
        return max(0.0, now_s - self._contact_s)

    @property
    def leading(self) -> bool:
        """Whether this process holds the controller election."""
        return self._session.leads

    async def start(self) -> None:
        """Loads the first state and begins to watch; waits for an etcd that is away."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._follow(), name="follow etcd"),
                asyncio.create_task(self._session.run(), name="hold the lease in etcd"),
            ]
        await self.changed(0)

    async def close(self) -> None:
        """Stops watching; gives up leadership and the registration at once."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("a task of the coordinator failed", exc_info=outcome)
        self._tasks = []
        self._connected = False
        await self._session.close()
        await self._client.close()

    async def changed(self, epoch: int) -> ClusterState:
        """Waits until the state's epoch is above `epoch`, and returns that state."""
        while self._state.epoch <= epoch:
            await self._changed.wait()
        return self._state

    async def register(self, node: NodeInfo) -> None:
        """Registers this process as a node; returns when etcd has it, and keeps it so until `close`."""
        await self._seen(await self._session.register(node))

    async def campaign(self, candidate: str) -> None:
        """Stands for election as controller in the background until `close`; `candidate` is unique to this process."""
        self._session.campaign(candidate)

    async def create_collection(self, record: CollectionRecord) -> None:
        """Stores a new collection.

        Raises:
            Conflict: the name is taken.
            ResourceExhausted: the record is too large for etcd.
            Unavailable: etcd is away; the collection may have been made.
        """
        await self._swap_collection(record, 0, _value_of(record))

    async def update_collection(self, record: CollectionRecord) -> None:
        """Replaces a collection that is still at the record's `mod_revision`; raises as `create_collection` does."""
        await self._swap_collection(record, record.mod_revision, _value_of(record))

    async def delete_collection(self, record: CollectionRecord) -> None:
        """Removes a collection and marks its uid as deleted; one that is gone already is fine.

        Raises:
            Conflict: it changed meanwhile.
            Unavailable: etcd is away; the collection may be gone.
        """
        await self._swap_collection(record, record.mod_revision, None)

    async def create_key(self, record: KeyRecord) -> None:
        """Stores a new API key; raises as `create_collection` does."""
        await self._swap(self._keys.key(record.id), 0, record.to_json())

    async def delete_key(self, record: KeyRecord) -> None:
        """Removes an API key; raises as `delete_collection` does."""
        await self._swap(self._keys.key(record.id), record.mod_revision, None)

    async def _swap_collection(self, record: CollectionRecord, expected: int, value: bytes | None) -> None:
        tombstone = (self._keys.deleted(record.uid), b"") if value is None else None
        await self._swap(self._keys.collection(record.name), expected, value, also=tombstone)

    async def _swap(self, key: str, expected: int, value: bytes | None, also: tuple[str, bytes] | None = None) -> None:
        try:
            outcome = await self._client.swap(key, expected, value, also=also)
        except Unavailable:
            self._exchanged(False)
            raise
        self._exchanged(True)
        found = None if outcome.current is None else outcome.current.value
        # Refused, but the key is as we want it: our first attempt went through, and its answer was lost.
        if not outcome.swapped and found != value:
            raise Conflict(f"{key} changed meanwhile")
        await self._seen(outcome.revision if outcome.current is None else outcome.current.mod_revision)

    async def _seen(self, revision: int) -> None:
        """Waits a little until the state shows a change of ours, so that who made it reads it back."""
        try:
            async with asyncio.timeout(SEEN_TIMEOUT_S):
                await self.changed(revision - 1)
        except TimeoutError:
            _log.info("the watch has not reached revision %d yet", revision)

    # ------------------------------------------------------------------ following

    async def _follow(self) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._load()
                async with aclosing(self._client.watch(self._keys.prefix, self._state.epoch + 1)) as batches:
                    async for batch in batches:
                        self._exchanged(True)
                        delay_s = RETRY_FIRST_S
                        if batch:
                            self._publish(after(self._keys, self._state, batch[-1].mod_revision, batch))
            except VectorfleetError as error:
                _log.warning("%s; the last state, of epoch %d, stays", error.message, self._state.epoch)
            except Exception:
                _log.exception("following etcd failed; the last state, of epoch %d, stays", self._state.epoch)
            self._exchanged(False)
            # Spread, so that a whole fleet does not come back at the same instant.
            await asyncio.sleep(delay_s * random.SystemRandom().uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, RETRY_MAX_S)

    async def _load(self) -> None:
        revision, entries = await self._client.load(self._keys.prefix)
        if revision < self._state.epoch:
            raise Unavailable(
                f"etcd is at revision {revision}, behind {self._state.epoch} which was seen already: it was wiped or "
                "restored from a backup. Restart this process to accept that",
                reason="COORDINATOR_UNAVAILABLE",
            )
        self._exchanged(True)
        self._publish(loaded(self._keys, self._state, revision, entries))

    def _publish(self, state: ClusterState) -> None:
        self._state = state
        self._session.observe(state)
        self._changed.set()
        self._changed = asyncio.Event()

    def _exchanged(self, well: bool) -> None:
        self._connected = well
        if well:
            self._contact_s = time.monotonic()


def _value_of(record: CollectionRecord) -> bytes:
    value = record.to_json()
    if len(value) > VALUE_BYTES_MAX:
        raise ResourceExhausted(
            f"the record of collection {record.name} takes {len(value)} bytes; etcd takes {VALUE_BYTES_MAX}: fewer shards",
            reason="MESSAGE_TOO_LARGE",
        )
    return value
