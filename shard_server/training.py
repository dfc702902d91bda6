"""Trains codebooks: gathers samples from the nodes that hold the shards, trains in a background thread, stores the file.

One training of a (collection, version) runs at a time; further requests for it share its outcome, and a stored file is never
trained again, so that a controller may ask twice. Invariant: samples of one training take at most `SAMPLE_BYTES_MAX`, and no
more than the ledger of memory has room for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.codebook_store import CodebookStore, checksum_of
from shard_server.peers import Peers
from shard_server.tasks import TaskKeeper
from shard_server.threads import WorkPool
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.errors import InvalidRequest, Unavailable, VectorfleetError
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.ledger import Ledger

SAMPLE_BYTES_MAX: Final = 1 << 30
SAMPLE_TIMEOUT_S: Final = 300.0
_log = logging.getLogger(__name__)

Trainer = Callable[[NDArray[np.float32], pb.TrainCodebookRequest, CollectionRecord], bytes]
"""(float32[n, dim], request, collection) → the codebook file's content; blocks for long."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of a training."""

    checksum: str
    sampled_points: int
    """0: the file was there already."""


class Training:
    """The trainings of one node."""

    def __init__(
        self,
        store: CodebookStore,
        peers: Peers,
        io_pool: WorkPool,
        pool: WorkPool,
        train: Trainer,
        ledger: Ledger | None = None,
    ) -> None:
        """Idle.

        Args:
            store: where codebooks go.
            peers: where samples come from.
            io_pool: for the store.
            pool: for the training itself.
            train: the engine's.
            ledger: of the process's memory; a training is made of fewer points where it has no room for all.
        """
        self._ledger = ledger or Ledger.without_limit()
        self._store = store
        self._peers = peers
        self._io_pool = io_pool
        self._pool = pool
        self._train = train
        self._tasks = TaskKeeper()
        self._running: dict[tuple[str, int], asyncio.Task[Trained | VectorfleetError]] = {}

    async def train(self, request: pb.TrainCodebookRequest, record: CollectionRecord) -> Trained:
        """Trains, or joins the training that runs. It goes on when the caller leaves.

        Raises:
            InvalidRequest: too few vectors for what is asked.
            VectorfleetError: a sample could not be had.
        """
        key = (request.collection_uid, request.version)
        task = self._running.get(key)
        if task is None:
            task = self._tasks.spawn(
                self._outcome(request, record), f"training codebook {key[1]} of collection {key[0]}"
            )
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, VectorfleetError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Cancels; a training thread that runs ends later and its outcome is lost."""
        await self._tasks.close()

    async def _outcome(self, request: pb.TrainCodebookRequest, record: CollectionRecord) -> Trained | VectorfleetError:
        try:
            return await self._run(request, record)
        except VectorfleetError as error:
            return error  # the callers' to hear of, not the log's: a wrong request must not fill it

    async def _run(self, request: pb.TrainCodebookRequest, record: CollectionRecord) -> Trained:
        stored = await self._io_pool.run(self._store.load, request.collection_uid, request.version)
        if stored is not None:
            return Trained(checksum_of(stored), 0)
        began = time.monotonic()
        points = self._points(request, record.dim)
        with self._ledger.reserving("training", points * _point_bytes(record.dim)):
            sample = await self._gather(request, record.dim, points)
            content = await self._pool.run(self._train, sample, request, record)
        checksum = await self._io_pool.run(self._store.save, request.collection_uid, request.version, content)
        _log.info(
            "trained codebook %d of collection %s: %d lists, m %d, on %d points in %.1f s",
            *(request.version, record.name, request.nlist, request.m, len(sample), time.monotonic() - began),
        )
        return Trained(checksum, len(sample))

    def _points(self, request: pb.TrainCodebookRequest, dim: int) -> int:
        """As many as are asked for and there is memory for; at least one a list, without which there is no training."""
        wanted = sum(source.limit for source in request.sources)
        fitting = min(SAMPLE_BYTES_MAX // (4 * dim), self._ledger.room_bytes() // _point_bytes(dim))
        return min(wanted, max(fitting, request.nlist))

    async def _gather(self, request: pb.TrainCodebookRequest, dim: int, points_max: int) -> NDArray[np.float32]:
        limits = sample_limits([source.limit for source in request.sources], points_max)
        sample = np.empty((sum(limits), dim), np.float32)
        filled = 0
        for source, limit in zip(request.sources, limits, strict=True):
            if limit == 0:
                continue  # an empty shard
            wanted = pb.SampleRequest(
                collection_uid=request.collection_uid,
                shard=source.shard,
                epoch=request.epoch,
                limit=limit,
                seed=(request.seed + source.shard) % 2**64,
            )
            last = filled + limit
            try:
                async for chunk in self._peers.sample(source.address, wanted, timeout_s=SAMPLE_TIMEOUT_S):
                    rows = np.frombuffer(chunk, "<f4").reshape(-1, dim)[: last - filled]
                    sample[filled : filled + len(rows)] = rows
                    filled += len(rows)
            except VectorfleetError as error:
                # Whatever it was, it is not this node's fault: to the caller it is a shard that gives no sample.
                place = f"shard {source.shard} on {source.address!r}"
                raise Unavailable(f"{place} gives no sample: {error.message}") from error
        if filled == 0:
            raise InvalidRequest("there is no point to train on")
        return sample[:filled]


def _point_bytes(dim: int) -> int:
    """Of a sampled vector: as it came, and as wide as the index wants it."""
    return 2 * 4 * dim


def sample_limits(wanted: list[int], points_max: int) -> list[int]:
    """Cuts the shards' sample sizes in proportion, so that there are at most `points_max` points."""
    total = sum(wanted)
    return wanted if total <= points_max else [limit * points_max // total for limit in wanted]
