"""Ways to ask a cluster for neighbours, timed: so many callers at once, or so many queries a second whoever still waits.

*Closed loop*: each caller asks its next query when its last was answered. It finds what a cluster can do at most; but a
pause of the server also stops the callers, who would have noticed it. *Open loop*: queries come due at random moments of a given
rate, and wait is counted from the moment at which a query was due, sent or not. It finds what users feel.

`CLIENT` is `AsyncClient` as users have it, whose concurrent searches share calls. `STUBS` are bare gRPC stubs on one
channel: each query is a call of its own, and its answer comes hit by hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import grpc
import numpy as np
from numpy.typing import NDArray

import vectorfleet
from loadtest.bare_faiss import Parameters
from loadtest.callers import Ask, Asked, Floats, Load, Rows, tasks
from loadtest.latency import Latencies
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import search_service_pb2, search_service_pb2_grpc

Through = Literal["client", "stubs"]
TIMEOUT_S: Final = 30.0
OVERDUE_MAX: Final = 5_000
"""Queries of an open loop that may wait at once: beyond, the rate is more than the cluster can do, and the loop ends."""


@dataclass(frozen=True)
class Target:
    """Where, and how hard to look."""

    address: str
    collection: str
    parameters: Parameters
    security: vectorfleet.Security | None = None
    """What a client needs there; for `client` alone."""


def closed_loop(target: Target, queries: Floats, load: Load, through: Through) -> Asked:
    """Lets callers ask, each one call after another."""

    async def run() -> Asked:
        async with _asking(target, through) as ask:
            return await tasks(ask, queries, load)

    return asyncio.run(run())


def open_loop(target: Target, queries: Floats, *, queries_s: float, seconds: float, seed: int = 1) -> Asked:
    """Asks single queries through the client as they come due, `queries_s` a second on average.

    Raises:
        RuntimeError: more came due than the cluster answers.
    """

    async def run() -> Asked:
        taken: list[float] = []
        rows: dict[int, Rows] = {}
        begin_s = time.perf_counter()

        async def call(ask: Ask, due_s: float, query: int) -> None:
            found = await ask(queries[query : query + 1])
            taken.append(time.perf_counter() - due_s)
            rows.setdefault(query, found[0])

        async with _asking(target, "client") as ask, asyncio.TaskGroup() as tasks:
            waiting: set[asyncio.Task[None]] = set()
            for number, due_s in enumerate(arrivals(queries_s, seconds, seed)):
                pause_s = begin_s + due_s - time.perf_counter()
                if pause_s > 0 or number % 32 == 0:
                    await asyncio.sleep(max(0.0, pause_s))
                if len(waiting) > OVERDUE_MAX:
                    raise RuntimeError(f"{queries_s:.0f} queries a second are more than this cluster answers")
                task = tasks.create_task(call(ask, begin_s + due_s, number % len(queries)))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
        return Asked(Latencies.of(taken, time.perf_counter() - begin_s, 1), rows)

    return asyncio.run(run())


def arrivals(a_second: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments, in seconds from the start, of independent arrivals (a Poisson process); the same for the same seed."""
    rng = np.random.default_rng(seed)
    at_s = 0.0
    while (at_s := at_s + float(rng.exponential(1 / a_second))) < seconds:
        yield at_s


def rows_of(ids: NDArray[np.object_]) -> Rows:
    """Row numbers of ids that are row numbers; far below 0 where an answer has fewer."""
    return np.where(ids == "", "-1000000000", ids).astype(np.int64)


@contextlib.asynccontextmanager
async def _asking(target: Target, through: Through) -> AsyncIterator[Ask]:
    if through == "client":
        async with vectorfleet.AsyncClient(target.address, timeout=TIMEOUT_S, security=target.security) as client:
            yield asker(client, target)
    else:
        async with grpc.aio.insecure_channel(target.address, options=CHANNEL_OPTIONS) as channel:
            yield _stubs(channel, target)


def asker(client: vectorfleet.AsyncClient, target: Target) -> Ask:
    """A way to ask through a client that is there."""
    parameters = target.parameters

    async def ask(queries: Floats) -> Rows:
        found = await client.search(
            target.collection,
            vectors=queries,
            k=parameters.k,
            nprobe=parameters.nprobe,
            oversample=parameters.oversample,
            min_coverage=1.0,
        )
        return rows_of(found.ids)

    return ask


def _stubs(channel: grpc.aio.Channel, target: Target) -> Ask:
    parameters = target.parameters
    stub = search_service_pb2_grpc.SearchServiceStub(channel)

    async def ask(queries: Floats) -> Rows:
        request = search_service_pb2.SearchRequest(
            collection=target.collection,
            queries=[search_service_pb2.Query(vector=query.tobytes()) for query in queries],
            k=parameters.k,
            params=search_service_pb2.SearchParams(nprobe=parameters.nprobe, oversample=parameters.oversample),
            min_coverage=1.0,
        )
        response = await stub.Search(request, timeout=TIMEOUT_S)
        rows = np.full((len(queries), parameters.k), -1_000_000_000, np.int64)
        for row, result in zip(rows, response.results, strict=True):
            row[: len(result.hits)] = [int(hit.id) for hit in result.hits]
        return rows

    return ask
