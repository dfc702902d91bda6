"""`AsyncClient`: the client for asyncio, method for method as `Client` (a test holds the two equal).

Belongs to the event loop in which it is first used. Calls of one method that are in flight together live in a task group of
that method: none outlives it, whatever fails or is cancelled.
"""

# ruff: noqa: ASYNC109 (the deadline travels with the call, as in `Client`)

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

import grpc
from numpy.typing import ArrayLike

from vectorfleet import _answers as answers
from vectorfleet import _arguments as arguments
from vectorfleet import _backups as backups
from vectorfleet import _codec as codec
from vectorfleet import errors, limits
from vectorfleet._aio_sharing import AioSharing
from vectorfleet._arguments import Filter, Ids, Payloads
from vectorfleet._attempts import Attempts, client_closed, poll_pause_s
from vectorfleet._backups import Backup, OnProgress, RestoredBackup
from vectorfleet._channel import Endpoint
from vectorfleet._credentials import Secret
from vectorfleet._keys import AsyncKeys
from vectorfleet._models import (
    ClusterInfo,
    Collection,
    DeleteResult,
    IndexOptions,
    Metric,
    Point,
    SearchResult,
    UpsertResult,
)
from vectorfleet._restraint import Restraint
from vectorfleet._security import Security
from vectorfleet.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    collection_service_pb2,
    collection_service_pb2_grpc,
    key_service_pb2_grpc,
    point_service_pb2,
    point_service_pb2_grpc,
    search_service_pb2_grpc,
)

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncClient:
    """A connection to a vectorfleet cluster, for asyncio.

    >>> async with AsyncClient("127.0.0.1:7700") as client:
    ...     found = await client.search("films", vectors=[0, 1, 0.1], k=1)
    ...     async for point in client.scroll("films"):
    ...         print(point.id)

    Methods, arguments, results and errors are those of `Client`, whose docstrings tell them in full. Safe to use from many
    tasks of one event loop.

    Args:
        address: "host:port" of a router. The connection is made when it is first needed.
        timeout: seconds that a call may take unless the method is told otherwise.
        security: certificates; what it leaves open comes from the environment or the configuration file (docs/security.md).
        api_key: the key, a `Path` of its file, or a function, which must be quick: it is asked before each call.
        token: a JSON Web Token, likewise.
        throttle: as for `Client`.

    Raises:
        InvalidRequest: the address, the timeout, the certificates or the credential make no sense, or TLS is missing.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:7700",
        *,
        timeout: float = limits.CALL_TIMEOUT_DEFAULT_S,
        security: Security | None = None,
        api_key: Secret | None = None,
        token: Secret | None = None,
        throttle: bool = True,
    ) -> None:
        self._endpoint = Endpoint(address, security, api_key, token)
        self._restraint = Restraint(enabled=throttle)
        self._timeout_s = arguments.seconds(timeout)
        self._connected: _Stubs | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._endpoint.address}>"

    @property
    def keys(self) -> AsyncKeys:
        """The cluster's API keys: `keys.create`, `keys.list`, `keys.revoke`."""
        return AsyncKeys(self._stubs.keys, self._call)

    async def close(self) -> None:
        """Closes the connection; calls that still run fail with `CLIENT_CLOSED`. May be called twice."""
        self._closed = True
        if self._connected is not None:
            await self._connected.sharing.close()
            await self._connected.channel.close()

    # ------------------------------------------------------------------------------------------------- collections

    async def create_collection(
        self,
        name: str,
        *,
        dim: SupportsIndex = 0,
        metric: Metric | None = None,
        shards: SupportsIndex = 0,
        embedding_model: str = "",
        index: IndexOptions | None = None,
        timeout: float | None = None,
    ) -> Collection:
        """Creates a collection and returns when its shards take writes: see `Client.create_collection`."""
        request = codec.create_collection(name, dim, metric, shards, embedding_model, index)
        response = await self._call(self._stubs.collections.CreateCollection, request, timeout, repeatable=False)
        return answers.collection(response.collection)

    async def get_collection(self, name: str, *, timeout: float | None = None) -> Collection:
        """Returns a collection and how far its index is; raises `NotFound`."""
        request = collection_service_pb2.GetCollectionRequest(name=codec.collection_name(name))
        response = await self._call(self._stubs.collections.GetCollection, request, timeout)
        return answers.collection(response.collection)

    async def list_collections(self, *, timeout: float | None = None) -> list[Collection]:
        """Returns all collections by name, without their progress."""
        found: list[Collection] = []
        page_token = ""
        while True:
            request = collection_service_pb2.ListCollectionsRequest(page_token=page_token)
            response = await self._call(self._stubs.collections.ListCollections, request, timeout)
            found.extend(answers.collection(message) for message in response.collections)
            page_token = response.next_page_token
            if not page_token:
                return found

    async def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a collection and all its points; there is no way back. Raises `NotFound`; retried like a creation."""
        request = collection_service_pb2.DeleteCollectionRequest(name=codec.collection_name(name))
        await self._call(self._stubs.collections.DeleteCollection, request, timeout, repeatable=False)

    async def wait_indexed(self, name: str, *, timeout: float = 600.0) -> Collection:
        """Waits until nothing is left to train, seal, encode or merge: see `Client.wait_indexed`."""
        timeout_s = arguments.seconds(timeout)
        deadline_s = time.monotonic() + timeout_s
        seen: Collection | None = None
        failure: errors.VectorfleetError | None = None
        polls = 0
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                seen = await self.get_collection(name, timeout=min(remaining_s, self._timeout_s))
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                failure = error  # it may come back while there is time
            else:
                failure = None
                if seen.progress is not None and seen.progress.settled:
                    return seen
            await asyncio.sleep(poll_pause_s(polls, deadline_s - time.monotonic()))
            polls += 1
        raise errors.DeadlineExceeded(answers.wait_story(name, seen, failure, timeout_s))

    # ------------------------------------------------------------------------------------------------------ points

    async def upsert(
        self,
        name: str,
        *,
        ids: Ids,
        vectors: ArrayLike | None = None,
        texts: Iterable[str] | None = None,
        payloads: Payloads | None = None,
        timeout: float | None = None,
    ) -> UpsertResult:
        """Inserts points or replaces them whole, any number of them: see `Client.upsert`."""
        plan = codec.upsert(name, ids, vectors, texts, payloads)
        return answers.upsert_result(await self._each(self._stubs.points.Upsert, plan.calls, plan.in_flight, timeout))

    async def delete(self, name: str, *, ids: Ids, timeout: float | None = None) -> DeleteResult:
        """Deletes points; ids that do not exist are passed over. Raises as `upsert` does."""
        calls = codec.delete(name, ids)
        responses = await self._each(self._stubs.points.Delete, calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout)
        return answers.delete_result(responses)

    async def get(self, name: str, *, ids: Ids, with_vector: bool = False, timeout: float | None = None) -> list[Point]:
        """Returns the points that exist, in the order asked; absent ids are left out. Raises as `upsert` does."""
        calls = codec.get(name, ids, with_vector)
        responses = await self._each(self._stubs.points.Get, calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout)
        return [point for response in responses for point in answers.points(response.points)]

    async def scroll(
        self, name: str, *, page_size: SupportsIndex = 1000, with_vector: bool = False, timeout: float | None = None
    ) -> AsyncIterator[Point]:
        """Walks through all points in the order of their ids, a page at a time: see `Client.scroll`."""
        page_token = ""
        while True:
            request = codec.scroll(name, page_size, page_token, with_vector)
            response = await self._call(self._stubs.points.Scroll, request, timeout)
            for point in answers.points(response.points):
                yield point
            page_token = response.next_page_token
            if not page_token:
                return

    async def count(self, name: str, *, timeout: float | None = None) -> int:
        """Counts live points exactly. Raises `NotFound`, or `Unavailable` where a shard is down."""
        request = point_service_pb2.CountRequest(collection=codec.collection_name(name))
        return (await self._call(self._stubs.points.Count, request, timeout)).points

    # ------------------------------------------------------------------------------------------------------ search

    async def search(
        self,
        name: str,
        *,
        vectors: ArrayLike | None = None,
        texts: Iterable[str] | None = None,
        k: SupportsIndex = limits.K_DEFAULT,
        nprobe: SupportsIndex = 0,
        oversample: float = 0,
        exact: bool = False,
        filter: Filter | None = None,  # noqa: A002 (the contract's word)
        with_payload: bool = False,
        with_vector: bool = False,
        min_coverage: float = 0.0,
        consistency_token: bytes = b"",
        timeout: float | None = None,
    ) -> SearchResult:
        """Finds the k nearest points to each query, best first: see `Client.search`.

        Concurrent searches of one vector each that ask alike travel in one call.
        """
        plan = codec.search(
            name,
            vectors,
            texts,
            k=k,
            nprobe=nprobe,
            oversample=oversample,
            exact=exact,
            filter=filter,
            with_payload=with_payload,
            with_vector=with_vector,
            min_coverage=min_coverage,
            consistency_token=consistency_token,
        )
        return await self._stubs.sharing.search(plan, self._seconds(timeout))

    async def cluster(self, *, timeout: float | None = None) -> ClusterInfo:
        """Returns nodes, shards and replicas as the router knows them."""
        request = cluster_service_pb2.GetClusterRequest()
        return answers.cluster_info(await self._call(self._stubs.cluster.GetCluster, request, timeout))

    async def create_backup(
        self,
        destination: str,
        *,
        collections: Iterable[str] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float = limits.BACKUP_TIMEOUT_DEFAULT_S,
    ) -> Backup:
        """Writes a backup and returns it when it is complete: see `Client.create_backup`."""
        request = backups.create_request(destination, collections)
        method = self._stubs.cluster.CreateBackup
        last = await backups.followed_async(
            method, request, timeout, on_progress, self._endpoint.metadata(), self._failure
        )
        return backups.backup_of(last.backup)

    async def restore_backup(
        self,
        source: str,
        *,
        backup: str = "",
        collections: Iterable[str] | Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float = limits.BACKUP_TIMEOUT_DEFAULT_S,
    ) -> RestoredBackup:
        """Makes collections of a backup: see `Client.restore_backup`."""
        request = backups.restore_request(source, backup, collections)
        method = self._stubs.cluster.RestoreBackup
        last = await backups.followed_async(
            method, request, timeout, on_progress, self._endpoint.metadata(), self._failure
        )
        return RestoredBackup(last.backup, tuple(last.collections))

    # ------------------------------------------------------------------------------------------------------- calls

    @property
    def _stubs(self) -> _Stubs:
        # Not in __init__: a channel of grpc.aio belongs to the loop that runs when it is made.
        if self._closed:
            raise client_closed()
        if self._connected is None:
            self._connected = _Stubs(self._endpoint.aio_channel(), self._finish, self._each)
        return self._connected

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None,
        *,
        repeatable: bool = True,
    ) -> ResponseT:
        return await self._finish(method, codec.Call(request), self._seconds(timeout), repeatable=repeatable)

    async def _each(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        calls: Iterable[codec.Call[RequestT]],
        in_flight: int,
        timeout: float | None,
    ) -> list[ResponseT]:
        """Makes several calls, at most `in_flight` at once; answers come in the order of the calls."""
        timeout_s = self._seconds(timeout)
        upcoming = iter(calls)
        head = list(itertools.islice(upcoming, 2))
        if len(head) == 1:
            return [await self._finish(method, head[0], timeout_s)]
        numbered = enumerate(itertools.chain(head, upcoming))
        done: dict[int, ResponseT] = {}

        async def work() -> None:
            for number, call in numbered:  # shared: each worker takes the next call that nobody has taken
                done[number] = await self._finish(method, call, timeout_s)

        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(in_flight)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        for worker in workers:
            worker.result()  # raises where it was cancelled: a task group passes over that, and answers would be missing
        return [done[number] for number in sorted(done)]

    async def _finish(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        call: codec.Call[RequestT],
        timeout_s: float,
        *,
        repeatable: bool = True,
    ) -> ResponseT:
        """Makes a call until it succeeds or there is no use in trying."""
        attempts = Attempts(timeout_s, time.monotonic(), repeatable=repeatable)
        left_s = timeout_s
        while True:
            if self._restraint.refused:
                self._restraint.before(method, call.request)
            try:
                return await method(call.request, timeout=left_s, metadata=self._endpoint.metadata())
            except (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
                failure = codec.located(self._failure(error), call.rows)
                self._restraint.after(method, call.request, failure)
                pause_s = attempts.pause_s(failure, time.monotonic())
                if pause_s is None:
                    raise failure from error
            await asyncio.sleep(pause_s)
            left_s = attempts.remaining_s(time.monotonic())

    def _failure(self, error: BaseException) -> errors.VectorfleetError:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise error  # the caller was cancelled; otherwise `close` cancelled the call
        return self._endpoint.failure(error, closed=self._closed)

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout_s if timeout is None else arguments.seconds(timeout)


class _Stubs:
    """A channel, the stubs on it, and the searches that share its calls."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        finish: Callable[..., Awaitable[Any]],
        each: Callable[..., Awaitable[list[Any]]],
    ) -> None:
        self.channel = channel
        self.collections = collection_service_pb2_grpc.CollectionServiceStub(channel)
        self.points = point_service_pb2_grpc.PointServiceStub(channel)
        self.search = search_service_pb2_grpc.SearchServiceStub(channel)
        self.keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self.sharing = AioSharing(partial(finish, self.search.Search), partial(each, self.search.Search))
        self.cluster = cluster_service_pb2_grpc.ClusterServiceStub(channel)
