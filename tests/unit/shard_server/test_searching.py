"""Searches whose caller has gone give their threads back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from shard_server.budget import ByteBudget
from shard_server.engine.answers import ReplicaStats, ShardHits
from shard_server.hosted import HostedReplica
from shard_server.searching import Searcher
from shard_server.threads import WorkPool
from tests.unit.shard_server.fake_replica import TIMEOUT_S, FakeReplica, collection
from vectorfleet.internal.v1 import shard_service_pb2 as pb


class Searched(FakeReplica):
    """Its searches of `ENDLESS` hits go on until they are told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.started = threading.Event()

    def stats(self) -> ReplicaStats:
        return ReplicaStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {})

    def search(self, vectors: np.ndarray, k: int, *, check: Callable[[], None], **_: object) -> ShardHits:
        self.started.set()
        while k == ENDLESS:
            check()
        return ShardHits(np.zeros(len(vectors), np.uint32), np.empty(0, np.float32), [], None, None, 0)


ENDLESS = 7


class Host:
    """Holds one replica."""

    def __init__(self, held: HostedReplica) -> None:
        self.held = held

    async def replica_for(self, *_: object, **__: object) -> HostedReplica:
        return self.held


def request(k: int) -> pb.SearchRequest:
    targets = [pb.ShardTarget(shard=0)]
    return pb.SearchRequest(collection_uid="u", k=k, query_count=1, vectors=bytes(16), targets=targets)


@contextlib.asynccontextmanager
async def searching() -> AsyncIterator[tuple[Searcher, Searched]]:
    pool = WorkPool("search", threads=1, waiting_max=10)
    record = collection("u", ["n1"])
    held = HostedReplica(record, record.shards[0], pool, ByteBudget("writes", 100), lambda _: None)
    fake = Searched()
    replica: Any = fake
    held.serve(replica)
    host: Any = Host(held)
    try:
        yield Searcher(host, pool, pool, ByteBudget("queries", 1 << 20)), fake
    finally:
        pool.close()


async def test_a_search_past_its_deadline_gives_its_thread_back() -> None:
    async with searching() as (searcher, _):
        late = pb.SearchResponse()
        await searcher.search(request(ENDLESS), 0.1, late)
        assert late.results[0].error_reason == "DEADLINE_EXCEEDED"
        answer = pb.SearchResponse()
        await searcher.search(request(1), TIMEOUT_S, answer)
        assert answer.results[0].error_reason == ""


async def test_a_search_of_one_shard_has_no_task_of_its_own() -> None:
    async with searching() as (searcher, _):
        made: list[object] = []

        def factory(loop: asyncio.AbstractEventLoop, work: Any, **about: Any) -> asyncio.Task[Any]:
            made.append(work)
            return asyncio.Task(work, loop=loop, **about)

        asyncio.get_running_loop().set_task_factory(factory)
        answer = pb.SearchResponse()
        await searcher.search(request(1), TIMEOUT_S, answer)
        asyncio.get_running_loop().set_task_factory(None)
        assert (answer.results[0].error_reason, made) == ("", [])


async def test_a_cancelled_search_gives_its_thread_back() -> None:
    async with searching() as (searcher, fake):
        gone = asyncio.create_task(searcher.search(request(ENDLESS), 1000.0, pb.SearchResponse()))
        assert await asyncio.to_thread(fake.started.wait, TIMEOUT_S)
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled()
        answer = pb.SearchResponse()
        await searcher.search(request(1), TIMEOUT_S, answer)
        assert answer.results[0].error_reason == ""
