"""`Client`: the blocking client. A thin shell: the codec makes requests and results, `Calls` makes the calls.

Safe to share between threads, whose searches then share calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Self, SupportsIndex

from numpy.typing import ArrayLike

from vectorfleet import _answers as answers
from vectorfleet import _arguments as arguments
from vectorfleet import _backups as backups
from vectorfleet import _codec as codec
from vectorfleet import errors, limits
from vectorfleet._arguments import Filter, Ids, Payloads
from vectorfleet._attempts import poll_pause_s
from vectorfleet._backups import Backup, OnProgress, RestoredBackup
from vectorfleet._calls import Calls
from vectorfleet._channel import Endpoint
from vectorfleet._credentials import Secret
from vectorfleet._keys import Keys
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
from vectorfleet._stubs import Stubs
from vectorfleet._thread_sharing import ThreadSharing
from vectorfleet.v1 import cluster_service_pb2, collection_service_pb2, point_service_pb2


class Client:
    """A connection to a vectorfleet cluster.

    >>> with Client("127.0.0.1:7700") as client:
    ...     client.create_collection("films", dim=3, metric="cosine")
    ...     client.upsert("films", ids=["alien", "brazil"], vectors=[[0, 1, 0], [1, 0, 0]])
    ...     client.search("films", vectors=[0, 1, 0.1], k=1).hits[0][0].id
    'alien'

    Every call has a deadline; a method that needs several calls (a large upsert) gives each of them `timeout` seconds. What
    is UNAVAILABLE for the moment is tried again, with backoff, within the deadline. All raise `VectorfleetError`.

    Args:
        address: "host:port" of a router. The connection is made when it is first needed.
        timeout: seconds that a call may take unless the method is told otherwise.
        security: certificates; what it leaves open comes from the environment or the configuration file (docs/security.md).
        api_key: the key; or, as a `Path`, its file; or a function that returns it, asked before each call. It is sent over
            TLS, or to this machine. One client is one caller: make several to act for several.
        token: a JSON Web Token, likewise. A file is read again when it changes.
        throttle: while the router refuses most of its calls as OVERLOADED, the client refuses some of them itself, without
            asking, and with the same error; False: never.

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
        self._stubs = Stubs(self._endpoint.channel())
        self._calls = Calls(self._endpoint, arguments.seconds(timeout), Restraint(enabled=throttle))
        self._sharing = ThreadSharing(
            partial(self._calls.whole, self._stubs.search.Search), partial(self._calls.each, self._stubs.search.Search)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._endpoint.address}>"

    @property
    def keys(self) -> Keys:
        """The cluster's API keys: `keys.create`, `keys.list`, `keys.revoke`."""
        return Keys(self._stubs.keys, self._calls.one)

    def close(self) -> None:
        """Closes the connection; calls that still run fail with `CLIENT_CLOSED`. May be called twice."""
        self._calls.closed = True
        self._stubs.channel.close()

    # ------------------------------------------------------------------------------------------------- collections

    def create_collection(
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
        """Creates a collection and returns when its shards take writes.

        Args:
            name: 1 to 128 characters of [A-Za-z0-9._-], the first a letter or digit.
            dim: components of a vector, 1 to 4,096; may be left out where `embedding_model` is given.
            metric: "l2", "dot" or "cosine"; None: "l2", or "cosine" where `embedding_model` is given.
            shards: partitions, 1 to 1,024; 0: one for each live node.
            embedding_model: a sentence-transformers model (a path on the router's machine or a hub name) that makes vectors
                of texts.
            index: None: defaults that suit most data.
            timeout: seconds; None: the client's.

        Raises:
            AlreadyExists: the name is taken.
            InvalidRequest: an argument is out of range; `field` names it.
            FailedPrecondition: the model cannot be loaded.
            Unavailable: there are no nodes, or etcd cannot be reached. Not retried, unless nothing can have happened.
        """
        request = codec.create_collection(name, dim, metric, shards, embedding_model, index)
        response = self._calls.one(self._stubs.collections.CreateCollection, request, timeout, repeatable=False)
        return answers.collection(response.collection)

    def get_collection(self, name: str, *, timeout: float | None = None) -> Collection:
        """Returns a collection and how far its index is; raises `NotFound`."""
        request = collection_service_pb2.GetCollectionRequest(name=codec.collection_name(name))
        return answers.collection(self._calls.one(self._stubs.collections.GetCollection, request, timeout).collection)

    def list_collections(self, *, timeout: float | None = None) -> list[Collection]:
        """Returns all collections by name, without their progress."""
        found: list[Collection] = []
        page_token = ""
        while True:
            request = collection_service_pb2.ListCollectionsRequest(page_token=page_token)
            response = self._calls.one(self._stubs.collections.ListCollections, request, timeout)
            found.extend(answers.collection(message) for message in response.collections)
            page_token = response.next_page_token
            if not page_token:
                return found

    def delete_collection(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a collection and all its points; there is no way back. Raises `NotFound`; retried like a creation."""
        request = collection_service_pb2.DeleteCollectionRequest(name=codec.collection_name(name))
        self._calls.one(self._stubs.collections.DeleteCollection, request, timeout, repeatable=False)

    def wait_indexed(self, name: str, *, timeout: float = 600.0) -> Collection:
        """Waits until nothing is left to train, seal, encode or merge, and returns the collection as it is then.

        A collection can be searched, with the same scores, at any time before.

        Raises:
            DeadlineExceeded: that took longer than `timeout` seconds; the message says how far it got.
        """
        timeout_s = arguments.seconds(timeout)
        deadline_s = time.monotonic() + timeout_s
        seen: Collection | None = None
        failure: errors.VectorfleetError | None = None
        polls = 0
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                seen = self.get_collection(name, timeout=min(remaining_s, self._calls.timeout_s))
            except (errors.Unavailable, errors.DeadlineExceeded) as error:
                failure = error  # it may come back while there is time
            else:
                failure = None
                if seen.progress is not None and seen.progress.settled:
                    return seen
            time.sleep(poll_pause_s(polls, deadline_s - time.monotonic()))
            polls += 1
        raise errors.DeadlineExceeded(answers.wait_story(name, seen, failure, timeout_s))

    # ------------------------------------------------------------------------------------------------------ points

    def upsert(
        self,
        name: str,
        *,
        ids: Ids,
        vectors: ArrayLike | None = None,
        texts: Iterable[str] | None = None,
        payloads: Payloads | None = None,
        timeout: float | None = None,
    ) -> UpsertResult:
        """Inserts points or replaces them whole. When it returns, all of them are on disk and searchable.

        Any number of points: they are cut into calls of a few MiB, several of which are in flight at once. Of equal ids the
        last wins. After an error any part of the points may have been written: call again, writes are idempotent.

        Args:
            name: the collection.
            ids: one a point: str of 1 to 256 bytes of UTF-8, or int, which is written in decimal.
            vectors: float32 (n, dim), or what numpy makes that of.
            texts: instead of vectors, where the collection has an embedding model; kept in the payload under "text".
            payloads: one JSON object or None a point.
            timeout: seconds for each call; None: the client's.

        Raises:
            InvalidRequest: an argument is at fault; `field` names it, with its position.
            NotFound: there is no such collection.
            FailedPrecondition: texts, but no embedding model.
            Unavailable: a shard that is needed is down.
        """
        plan = codec.upsert(name, ids, vectors, texts, payloads)
        return answers.upsert_result(
            list(self._calls.each(self._stubs.points.Upsert, plan.calls, plan.in_flight, timeout))
        )

    def delete(self, name: str, *, ids: Ids, timeout: float | None = None) -> DeleteResult:
        """Deletes points; ids that do not exist are passed over. Raises as `upsert` does."""
        calls = codec.delete(name, ids)
        responses = self._calls.each(self._stubs.points.Delete, calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout)
        return answers.delete_result(list(responses))

    def get(self, name: str, *, ids: Ids, with_vector: bool = False, timeout: float | None = None) -> list[Point]:
        """Returns the points that exist, in the order asked; absent ids are left out. Raises as `upsert` does."""
        calls = codec.get(name, ids, with_vector)
        responses = self._calls.each(self._stubs.points.Get, calls, codec.VECTOR_CALLS_IN_FLIGHT, timeout)
        return [point for response in responses for point in answers.points(response.points)]

    def scroll(
        self, name: str, *, page_size: SupportsIndex = 1000, with_vector: bool = False, timeout: float | None = None
    ) -> Iterator[Point]:
        """Walks through all points in the order of their ids (bytewise), a page at a time.

        Each point that exists during the whole walk comes exactly once.

        Args:
            name: the collection.
            page_size: points a call, 1 to 10,000.
            with_vector: points carry their vectors.
            timeout: seconds for each page; None: the client's.
        """
        page_token = ""
        while True:
            request = codec.scroll(name, page_size, page_token, with_vector)
            response = self._calls.one(self._stubs.points.Scroll, request, timeout)
            yield from answers.points(response.points)
            page_token = response.next_page_token
            if not page_token:
                return

    def count(self, name: str, *, timeout: float | None = None) -> int:
        """Counts live points exactly. Raises `NotFound`, or `Unavailable` where a shard is down."""
        request = point_service_pb2.CountRequest(collection=codec.collection_name(name))
        return self._calls.one(self._stubs.points.Count, request, timeout).points

    # ------------------------------------------------------------------------------------------------------ search

    def search(
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
        """Finds the k nearest points to each query, best first.

        A shard that is down or slow costs its part of the answer, never the answer: look at `result.coverage`, or ask for
        `min_coverage`. More than 1,024 queries are sent as several calls; single ones of several threads share calls.

        Args:
            name: the collection.
            vectors: queries, float32 (n, dim); or (dim,) for a single one.
            texts: instead of vectors: queries that the collection's model embeds; or a str for a single one.
            k: hits a query, 1 to 10,000.
            nprobe: inverted lists to visit; 0: chosen by the cluster. More is slower and finds more.
            oversample: candidates compared on raw vectors, as a multiple of k, 1 to 1,000; 0: 10, and 100 at least.
            exact: compare every vector: slow, and nothing is missed.
            filter: only points whose payload passes, {"lang": "en", "price": {"$lt": 10}}: see the README.
            with_payload, with_vector: hits carry their payloads, their vectors.
            min_coverage: share of the shards that must answer, 0 to 1.
            consistency_token: of an upsert or delete, which the search is then sure to see.
            timeout: seconds for each call; None: the client's.

        Raises:
            InvalidRequest: an argument is at fault; `field` names it.
            NotFound: there is no such collection.
            Unavailable: fewer shards answered than `min_coverage` asks for.
            ResourceExhausted: the answer would pass 64 MiB, or the cluster is overloaded.
            DeadlineExceeded: the time is up.
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
        return self._sharing.search(plan, self._calls.seconds(timeout))

    def cluster(self, *, timeout: float | None = None) -> ClusterInfo:
        """Returns nodes, shards and replicas as the router knows them."""
        request = cluster_service_pb2.GetClusterRequest()
        return answers.cluster_info(self._calls.one(self._stubs.cluster.GetCluster, request, timeout))

    def create_backup(
        self,
        destination: str,
        *,
        collections: Iterable[str] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float = limits.BACKUP_TIMEOUT_DEFAULT_S,
    ) -> Backup:
        """Writes a backup, of each shard a prefix of its log, while writes go on; returns it when it is complete.

        Files that an earlier backup left at the destination are not sent again: after an error, call again.

        Args:
            destination: an absolute path of a directory that all nodes share, or a URL such as "s3://bucket/folder"; below
                a `--backup-root` of every node.
            collections: names; None: all.
            on_progress: called several times a second.
            timeout: seconds for all of it.

        Raises:
            NotFound: there is no such collection.
            FailedPrecondition: a node may not write there.
            Unavailable: the destination, a shard or its node does not answer. Not retried.
            DataLoss: a replica's file is damaged.
        """
        request = backups.create_request(destination, collections)
        last = backups.followed(self._stubs.cluster.CreateBackup, request, timeout, on_progress, self._calls)
        return backups.backup_of(last.backup)

    def restore_backup(
        self,
        source: str,
        *,
        backup: str = "",
        collections: Iterable[str] | Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        timeout: float = limits.BACKUP_TIMEOUT_DEFAULT_S,
    ) -> RestoredBackup:
        """Makes collections of a backup, which can be seen when all of them are there; after an error nothing is left.

        Args:
            source: the destination of backups, as in `create_backup`.
            backup: the id of one; "": the newest.
            collections: names in the backup, or a mapping of those to new names; None: all, under their own names.
            on_progress: called several times a second.
            timeout: seconds for all of it.

        Raises:
            NotFound: no backup, or no such collection in it.
            AlreadyExists: a name is taken: give another.
            DataLoss: an object of the backup is damaged; the message names it.
            FailedPrecondition: a node may not read there.
            Unavailable: the source, or a node, does not answer. Not retried.
        """
        request = backups.restore_request(source, backup, collections)
        last = backups.followed(self._stubs.cluster.RestoreBackup, request, timeout, on_progress, self._calls)
        return RestoredBackup(last.backup, tuple(last.collections))
