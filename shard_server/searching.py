"""A batch of queries on several shards of this node: all at once, each answering for itself.

A shard that is loading, failed, slow or not here says so in its own result and costs the others nothing: what is done when
the caller's time runs out is the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shard_server import checking
from shard_server.budget import ByteBudget
from shard_server.engine.stages import Lap, untimed
from shard_server.hosting import ReplicaHost
from shard_server.metrics import BACKGROUND
from shard_server.threads import WorkPool
from vectorfleet import limits
from vectorfleet.errors import DeadlineExceeded, InternalError, ResourceExhausted, VectorfleetError
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.telemetry.work import Work, current

if TYPE_CHECKING:
    from shard_server.engine.replica import Replica

HIT_BYTES_MIN: Final = 4 + 3
"""A score, and an id of one character with its framing."""
WARM_UP_QUERIES: Final = 4
WARM_UP_HITS: Final = 10
STAGES: Final = tuple(name.removeprefix("SEARCH_STAGE_").lower() for name, number in pb.SearchStage.items() if number)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedHits:
    """What one shard answers, as the fields of its `ShardResult`.

    Not the message itself: putting a message into another copies it, on the event loop, at a tenth of memory's speed.
    """

    fields: dict[str, Any]
    size_bytes: int


class Patience:
    """Whether a search that runs in a thread still has somebody to answer: else it would hold the thread for nothing."""

    def __init__(self, deadline: float) -> None:
        """Lasts until `deadline` (of `time.monotonic()`) or `end`."""
        self._deadline = deadline

    def end(self) -> None:
        """Nobody waits any more: the call was cancelled."""
        self._deadline = float("-inf")

    def check(self) -> None:
        """Raises `DeadlineExceeded` once it is over. May be called from any thread."""
        if time.monotonic() >= self._deadline:
            raise DeadlineExceeded("the deadline passed during the search")


class Searcher:
    """Answers search requests from the replicas of a host."""

    def __init__(self, host: ReplicaHost, pool: WorkPool, quiet: WorkPool, budget: ByteBudget) -> None:
        """Takes what it searches with.

        Args:
            host: the replicas.
            pool: threads for the scans.
            quiet: a thread of the lowest priority, for searches that nobody waits for.
            budget: the node's ceiling on queries in memory.
        """
        self._host = host
        self._pool = pool
        self._quiet = quiet
        self._budget = budget

    async def search(self, request: pb.SearchRequest, timeout_s: float, response: pb.SearchResponse) -> None:
        """Searches all targets.

        Args:
            request: k and the vectors' number are checked here, since they size our memory; their values are the router's.
            timeout_s: when it is over, targets that are not done answer with DEADLINE_EXCEEDED.
            response: takes the answer; untouched where it fails. Given, since a message that is put into another is copied.

        Raises:
            InvalidRequest: the request contradicts itself.
            ResourceExhausted: too many queries are in memory, or the answer would pass the message limit.
        """
        checking.check_search(request)
        work = current()
        if request.background:
            work.facts[BACKGROUND] = True
            if self._pool.waiting:
                raise ResourceExhausted("searches that somebody waits for come first")
        work.facts.update(
            queries=request.query_count,
            k=request.k,
            nprobe=request.nprobe,
            exact=request.exact,
            filter=request.HasField("filter"),
        )
        size_bytes = request.ByteSize()
        self._budget.take(size_bytes)
        try:
            # The answer itself needs a moment to travel.
            deadline = time.monotonic() + 0.95 * timeout_s
            targets = [self._target(request, target, deadline, work) for target in request.targets]
            # One target, as is usual, needs no task of its own.
            hits = await asyncio.gather(*targets) if len(targets) > 1 else [await targets[0]]
        finally:
            self._budget.give(size_bytes)
        if sum(one.size_bytes for one in hits) > limits.CALL_BYTES_MAX:
            raise _too_large()
        for target, one in zip(request.targets, hits, strict=True):
            response.results.add(shard=target.shard, **one.fields)

    async def warm_up(self, timeout_s: float) -> None:
        """Has every replica that serves searched once, or as many as the time is enough for."""
        deadline = time.monotonic() + timeout_s
        for held in self._host.replicas:
            if held.serving:
                with contextlib.suppress(VectorfleetError):  # told by every search to come
                    await held.run(self._pool, deadline, warm_up)

    async def _target(
        self, request: pb.SearchRequest, target: pb.ShardTarget, deadline: float, call: Work
    ) -> PackedHits:
        work = call.part("shard")
        work.facts["shard"] = target.shard
        try:
            hits = await self._search_shard(request, target, deadline, call, work)
            work.end()
            return hits
        except VectorfleetError as raised:
            error: VectorfleetError = raised
        except Exception as raised:
            _log.exception("search of shard %d of collection %s failed", target.shard, request.collection_uid)
            error = InternalError(
                f"{type(raised).__name__} while shard {target.shard} was searched; see the node's log"
            )
        work.end(error.reason)
        if error.reason == "RESPONSE_TOO_LARGE":
            # Not this shard's failure: the request would meet it on any replica. The sum below says so.
            return PackedHits({}, limits.CALL_BYTES_MAX + 1)
        return PackedHits({"error_reason": error.reason, "error_message": error.message}, 0)

    async def _search_shard(
        self, request: pb.SearchRequest, target: pb.ShardTarget, deadline: float, call: Work, work: Work
    ) -> PackedHits:
        # Each wait below ends by itself when its time is up.
        # Half of the time for a replica that is still loading: the search itself needs some, too.
        patience_s = max(0.0, deadline - time.monotonic()) / 2
        held = await self._host.replica_for(request.collection_uid, target.shard, request.epoch, timeout_s=patience_s)
        if target.min_seqno:
            await held.wait_applied(target.min_seqno, patience_s)
        vectors = checking.query_matrix(request, held.record)
        call.facts["collection"] = held.record.name
        patience = Patience(deadline)
        try:
            pool = self._quiet if request.background else self._pool
            hits = await held.run(pool, deadline, search_replica, vectors, request, patience.check, work.lap)
        finally:
            patience.end()
        hits.fields["stage_us"] = _stage_us(work)
        return hits


def search_replica(
    replica: Replica,
    vectors: NDArray[np.float32],
    request: pb.SearchRequest,
    check: Callable[[], None],
    lap: Lap = untimed,
) -> PackedHits:
    """Searches one replica and packs its hits; blocks. `lap` is called first when a thread has begun ("queue").

    Raises:
        ResourceExhausted: the answer cannot be sent.
        VectorfleetError: what `check` raised, which is called between steps.
    """
    lap("queue")
    hit_bytes_min = HIT_BYTES_MIN + (4 * vectors.shape[1] if request.with_vector else 0)
    hits_max = limits.CALL_BYTES_MAX // hit_bytes_min
    if request.query_count * request.k > hits_max and request.query_count * replica.stats().points > hits_max:
        raise _too_large()
    filtered = request.HasField("filter")
    hits = replica.search(
        vectors,
        request.k,
        nprobe=request.nprobe,
        oversample=request.oversample,
        exact=request.exact,
        with_payload=request.with_payload,
        with_vector=request.with_vector,
        wanted=request.filter if filtered else None,
        check=check,
        lap=lap,
    )
    payloads = hits.payloads or []
    size_bytes = len(hits.ids) * hit_bytes_min + sum(map(len, hits.ids)) + sum(map(len, payloads))
    if size_bytes > limits.CALL_BYTES_MAX:
        raise _too_large()
    packed = {
        "counts": hits.counts.astype("<u4", copy=False).tobytes(),
        "scores": hits.scores.astype("<f4", copy=False).tobytes(),
        "ids": hits.ids,
        "payloads": payloads,
        "vectors": b"" if hits.vectors is None else hits.vectors.astype("<f4", copy=False).tobytes(),
        "matching_points": hits.matching if filtered else 0,
    }
    return PackedHits(packed, size_bytes)


def warm_up(replica: Replica) -> None:
    """Searches for nothing in particular, so that no user's search is the first: blocks. Raises what a search does."""
    dim = replica.identity.dim
    replica.search(np.random.default_rng(0).standard_normal((WARM_UP_QUERIES, dim), np.float32), WARM_UP_HITS)


def _stage_us(work: Work) -> list[int]:
    """As `ShardResult.stage_us` has it."""
    spent_s = work.spent_s
    return [int(1e6 * spent_s.get(stage, 0.0)) for stage in STAGES]


def _too_large() -> ResourceExhausted:
    return ResourceExhausted("the hits of this node's shards pass 64 MiB", reason="RESPONSE_TOO_LARGE")
