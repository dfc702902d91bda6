"""`make abuse`: what strangers may do to a router while somebody else's calls go on, and all of those must succeed.

Idle connections by the thousand, handshakes that do not end, a message of a gigabyte, a flood of tiny requests, headers without
measure, streams that are never read and streams that never end. Each costs its sender alone; the router says so by staying what
it was: as responsive, and not larger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import psutil

import vectorfleet
from loadtest.fleet import local_cluster
from vectorfleet import errors
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import point_service_pb2, point_service_pb2_grpc, search_service_pb2, search_service_pb2_grpc

COLLECTION: Final = "abuse"
DIM: Final = 8
POINTS: Final = 2_000
TIMEOUT_S: Final = 30.0
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""What an HTTP/2 client says first, with empty settings."""


@dataclass(frozen=True)
class Strength:
    """How much of each."""

    connections: int = 10_000
    silent: int = 1_000
    requests: int = 100_000
    message_bytes: int = 1 << 30
    unread: int = 200


@dataclass
class Victim:
    """Somebody who searches, one call after another, on a connection of its own."""

    address: str
    collection: str
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Searches during the block, and once more after it."""
        async with vectorfleet.AsyncClient(self.address, timeout=TIMEOUT_S) as client:
            await self._search(client)
            work = asyncio.create_task(self._for_ever(client))
            try:
                yield
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            await self._search(client)

    async def _for_ever(self, client: vectorfleet.AsyncClient) -> None:
        while True:
            await self._search(client)
            await asyncio.sleep(0.01)

    async def _search(self, client: vectorfleet.AsyncClient) -> None:
        try:
            await client.search(self.collection, vectors=np.ones((1, DIM), np.float32), k=3, min_coverage=1.0)
        except vectorfleet.VectorfleetError as error:
            self.failures[str(error)] += 1
        else:
            self.answered += 1


def _channel(address: str) -> grpc.aio.Channel:
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.aio.insecure_channel(address, options=options)


async def idle(address: str, collection: str, strength: Strength) -> Counter[str]:
    """Connections that did shake hands, and then say nothing."""
    return await _held(address, PREFACE, strength.connections)


async def silent(address: str, collection: str, strength: Strength) -> Counter[str]:
    """Connections that begin a handshake and do not go on."""
    return await _held(address, PREFACE[:7], strength.silent)


async def _held(address: str, first: bytes, count: int) -> Counter[str]:
    """Opens connections, says `first` on each, and holds them until all stand."""
    host, _, port = address.rpartition(":")
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(first)
        writers.append(writer)
    for writer in writers:
        writer.close()
    return Counter({"stood": len(writers)})


async def huge_message(address: str, collection: str, strength: Strength) -> Counter[str]:
    """One message, far over the limit."""
    async with _channel(address) as channel:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{point_service_pb2.DESCRIPTOR.services_by_name['PointService'].full_name}/Upsert"
        )
        return Counter([await _outcome(send(bytes(strength.message_bytes), timeout=TIMEOUT_S))])


async def long_headers(address: str, collection: str, strength: Strength) -> Counter[str]:
    """Headers over the limit, a hundred times."""
    async with _channel(address) as channel:
        stub = point_service_pb2_grpc.PointServiceStub(channel)
        request = point_service_pb2.CountRequest(collection=collection)
        metadata = (("x-long", "x" * 100_000),)
        calls = [_outcome(stub.Count(request, metadata=metadata, timeout=TIMEOUT_S)) for _ in range(100)]
        return Counter(await asyncio.gather(*calls))


async def tiny_requests(address: str, collection: str, strength: Strength) -> Counter[str]:
    """A flood of small calls, 200 at a time."""
    outcomes: Counter[str] = Counter()
    async with _channel(address) as channel:
        stub = point_service_pb2_grpc.PointServiceStub(channel)
        request = point_service_pb2.GetRequest(collection=collection, ids=["1"])

        async def caller(calls: int) -> None:
            for _ in range(calls):
                outcomes[await _outcome(stub.Get(request, timeout=TIMEOUT_S))] += 1

        callers = 200
        await asyncio.gather(*(caller(strength.requests // callers) for _ in range(callers)))
    return outcomes


async def unread_streams(address: str, collection: str, strength: Strength) -> Counter[str]:
    """Streams that ask for much and read nothing."""
    async with _channel(address) as channel:
        stub = search_service_pb2_grpc.SearchServiceStub(channel)
        vector = np.ones(DIM, "<f4").tobytes()
        search = search_service_pb2.SearchRequest(
            collection=collection, queries=[search_service_pb2.Query(vector=vector)] * 50, k=1_000, with_vector=True
        )
        stream = stub.SearchStream(timeout=TIMEOUT_S)
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                for number in range(1, strength.unread + 1):
                    await stream.write(search_service_pb2.SearchStreamRequest(request_id=number, request=search))
                    sent += 1
        stream.cancel()
        return Counter({"sent": sent})


ABUSES: Final[tuple[Callable[[str, str, Strength], Awaitable[Counter[str]]], ...]] = (
    idle,
    silent,
    huge_message,
    long_headers,
    tiny_requests,
    unread_streams,
)


async def _outcome(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return errors.from_rpc_error(error).reason
    return "OK"


def prepare(client: vectorfleet.Client, collection: str) -> None:
    """Makes what is searched."""
    client.create_collection(collection, dim=DIM, metric="l2", shards=2)
    vectors = np.random.default_rng(1).standard_normal((POINTS, DIM), np.float32)
    client.upsert(collection, ids=range(POINTS), vectors=vectors)


async def suffer(address: str, collection: str, strength: Strength) -> dict[str, tuple[Victim, Counter[str]]]:
    """Does all of it, one after another; returns what became of the victim, and of the abuser, by the abuse's name."""
    told = {}
    for abuse in ABUSES:
        victim = Victim(address, collection)
        async with victim.at_work():
            outcomes = await abuse(address, collection, strength)
        told[abuse.__name__] = victim, outcomes
    return told


def main() -> None:
    """Starts a cluster and abuses it; exit status 1 where a call of others failed."""
    parser = argparse.ArgumentParser(description="Abuse a router while others use it.")
    parser.add_argument("--share", type=float, default=1.0, help="of the full strength (default: %(default)s)")
    share = parser.parse_args().share
    strength = Strength(*(int(share * value) for value in (10_000, 1_000, 100_000, 1 << 30, 200)))
    with tempfile.TemporaryDirectory(prefix="vectorfleet-abuse-") as data, local_cluster(Path(data)) as fleet:
        with vectorfleet.Client(fleet.address, timeout=TIMEOUT_S) as client:
            prepare(client, COLLECTION)
        router = psutil.Process(fleet.processes["router-0"].pid)
        before = router.memory_info().rss
        failed = 0
        for name, (victim, outcomes) in asyncio.run(suffer(fleet.address, COLLECTION, strength)).items():
            failed += victim.failures.total()
            print(
                f"{name:15} {dict(outcomes)}; others: {victim.answered} answered, {dict(victim.failures) or 'none failed'}"
            )
        after = router.memory_info().rss
        print(f"router: {before >> 20} MiB before, {after >> 20} MiB after")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
