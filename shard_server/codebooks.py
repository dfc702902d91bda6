"""The codebooks in use on this node: one for each collection, loaded once, fetched from other nodes when missing.

The shard map says which version is current and what its checksum is; the file comes from disk, from the node that trained
it, or from any other. Invariant: a codebook is handed out only when its content has the shard map's checksum, and the
version of a collection never goes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Final

from shard_server.codebook_store import CodebookStore, checksum_of
from shard_server.peers import Peers
from shard_server.threads import WorkPool
from vectorfleet.cluster.shard_map import CodebookRecord, NodeInfo
from vectorfleet.errors import DataLoss, Unavailable, VectorfleetError

if TYPE_CHECKING:
    from shard_server.engine.index import Codebook

CODEBOOK_BYTES_MAX: Final = 2 << 30
"""65,536 centroids of 4,096 dimensions are 1 GiB."""
FETCH_TIMEOUT_S: Final = 120.0
_log = logging.getLogger(__name__)


class Codebooks:
    """Finds the file of a codebook and keeps what replicas of a collection share."""

    def __init__(
        self, store: CodebookStore, peers: Peers, pool: WorkPool, load: Callable[[bytes, int], Codebook]
    ) -> None:
        """Starts with none.

        Args:
            store: the files.
            peers: where missing ones come from.
            pool: for reading and writing them.
            load: makes a codebook of a file's content and version; raises `DataLoss`.
        """
        self._store = store
        self._peers = peers
        self._pool = pool
        self._load = load
        self._current: dict[str, Codebook] = {}
        self._older: dict[tuple[str, int], Codebook] = {}

    def current(self, uid: str) -> Codebook | None:
        """The newest codebook of a collection that this node has."""
        return self._current.get(uid)

    def has(self, uid: str, wanted: CodebookRecord) -> bool:
        """Whether the wanted codebook, or a newer one, is at hand."""
        current = self._current.get(uid)
        if current is None or current.version < wanted.version:
            return False
        return current.version > wanted.version or current.checksum == wanted.checksum

    async def from_disk(self, uid: str, wanted: CodebookRecord | None) -> Codebook | None:
        """The best codebook that needs no network: the wanted one, else the newest older one, else None."""
        if wanted is None or self.has(uid, wanted):
            return self.current(uid)
        for version in reversed(await self._pool.run(self._store.versions, uid)):
            if version > wanted.version:
                continue  # trained here, and not in the shard map (yet)
            checksum = wanted.checksum if version == wanted.version else ""
            content = await self._pool.run(self._store.load, uid, version, checksum)
            if content is None:
                continue
            try:
                return await self._adopt(uid, version, content)
            except DataLoss as error:
                _log.error("codebook of %s is left aside: %s", uid, error.message)
        return self.current(uid)

    async def obtain(self, uid: str, wanted: CodebookRecord, nodes: Iterable[NodeInfo]) -> Codebook:
        """Gets the wanted codebook from disk, from the node that trained it, or from any other.

        Raises:
            Unavailable: nobody who answers has it.
        """
        found = await self.from_disk(uid, wanted)
        if found is not None and self.has(uid, wanted):
            return found
        trained_it_first = sorted(nodes, key=lambda node: node.id != wanted.node)
        failures = []
        for node in trained_it_first:
            try:
                content = await self._fetch(node.address, uid, wanted)
            except VectorfleetError as error:
                failures.append(f"{node.id}: {error.message}")
                continue
            await self._pool.run(self._store.save, uid, wanted.version, content)
            return await self._adopt(uid, wanted.version, content)
        raise Unavailable(f"codebook {wanted.version} of {uid} is nowhere: {'; '.join(failures) or 'no other node'}")

    async def older(self, uid: str, version: int) -> list[Codebook]:
        """Those on disk below `version`, ascending: segments may still be encoded with them."""
        found = []
        for one in await self._pool.run(self._store.versions, uid):
            if one >= version:
                break
            if (uid, one) not in self._older and (content := await self._pool.run(self._store.load, uid, one)):
                try:
                    self._older[uid, one] = await self._pool.run(self._load, content, one)
                except DataLoss as error:
                    _log.error("codebook of %s is left aside: %s", uid, error.message)
            if (uid, one) in self._older:
                found.append(self._older[uid, one])
        return found

    async def drop_unused(self, uid: str, used: Collection[int]) -> None:
        """Removes the versions below the current one that are not in `used`."""
        current = self._current.get(uid)
        if current is not None:
            await self._pool.run(self._store.drop_older, uid, current.version, used)
            self._older = {key: one for key, one in self._older.items() if key[0] != uid or key[1] in used}

    def forget(self, uid: str) -> None:
        """Lets go of a collection's codebook in memory; the files stay."""
        self._current.pop(uid, None)
        self._older = {key: one for key, one in self._older.items() if key[0] != uid}

    async def remove(self, uid: str) -> None:
        """Removes all codebooks of a deleted collection."""
        self.forget(uid)
        await self._pool.run(self._store.remove, uid)

    async def _fetch(self, address: str, uid: str, wanted: CodebookRecord) -> bytes:
        content = await self._peers.codebook(
            address, uid, wanted.version, bytes_max=CODEBOOK_BYTES_MAX, timeout_s=FETCH_TIMEOUT_S
        )
        if (found := checksum_of(content)) != wanted.checksum:
            raise DataLoss(f"its file has checksum {found}, not {wanted.checksum}")
        return content

    async def _adopt(self, uid: str, version: int, content: bytes) -> Codebook:
        loaded = await self._pool.run(self._load, content, version)
        current = self._current.get(uid)
        if current is None or current.version <= version:
            self._current[uid] = current = loaded
        return current
