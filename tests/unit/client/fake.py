"""A stand-in for a whole cluster: the public services over a real gRPC server, with brute force in numpy behind them.

Keeps what it was asked, and can be told to fail. Not a second implementation of the contract: it checks next to nothing.
"""

# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import numpy as np

from vectorfleet import errors
from vectorfleet.internal.v1 import token_pb2
from vectorfleet.rpc_options import SERVER_OPTIONS
from vectorfleet.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    collection_service_pb2,
    collection_service_pb2_grpc,
    point_service_pb2,
    point_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    types_pb2,
)

TEXT_DIM = 8


def embedded(text: str) -> np.ndarray:
    """A vector of a text: how often each letter occurs, in eight bins."""
    vector = np.zeros(TEXT_DIM, np.float32)
    for letter in text:
        vector[ord(letter) % TEXT_DIM] += 1
    return vector


@dataclass
class Stored:
    vector: np.ndarray
    payload: bytes
    version: int


@dataclass
class Shelf:
    spec: types_pb2.CollectionSpec
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    points: dict[str, Stored] = field(default_factory=dict)
    seqno: int = 0
    polls_until_settled: int = 0


class FakeCluster(
    collection_service_pb2_grpc.CollectionServiceServicer,
    point_service_pb2_grpc.PointServiceServicer,
    search_service_pb2_grpc.SearchServiceServicer,
    cluster_service_pb2_grpc.ClusterServiceServicer,
):
    """Attributes:

    shelves: collections by name.
    requests: every request that came, in order.
    calls: how often each method was called.
    in_flight_max: the most calls that were here at once.
    failures: by method, errors that its next calls are answered with.
    before: called with the method's name before each answer; may block.
    missing: shards that searches go without.
    unknown_collections: what node-1 holds and the shard map does not know.
    """

    def __init__(self) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.in_flight_max = 0
        self.failures: dict[str, list[errors.VectorfleetError]] = {}
        self.before: Callable[[str], None] = lambda method: None
        self.missing: list[types_pb2.MissingShard] = []
        self.unknown_collections: list[str] = []
        self.shards = 4
        self._in_flight = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool, options=SERVER_OPTIONS)
        collection_service_pb2_grpc.add_CollectionServiceServicer_to_server(self, self._server)
        point_service_pb2_grpc.add_PointServiceServicer_to_server(self, self._server)
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(self, self._server)
        cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def fail(self, method: str, *failures: errors.VectorfleetError) -> None:
        self.failures[method] = list(failures)

    # Collections

    def CreateCollection(self, request: Any, context: Any) -> Any:
        def create() -> Any:
            spec = types_pb2.CollectionSpec()
            spec.CopyFrom(request.spec)
            if spec.name in self.shelves:
                raise errors.AlreadyExists(f"collection {spec.name!r} exists")
            if spec.dim > 4096:
                raise errors.InvalidRequest("dim must be 1 to 4096", field="spec.dim")
            spec.metric = spec.metric or (types_pb2.METRIC_COSINE if spec.embedding_model else types_pb2.METRIC_L2)
            spec.dim = spec.dim or TEXT_DIM
            spec.shards = spec.shards or self.shards
            spec.replicas = 1
            spec.index.kind = spec.index.kind or types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN
            spec.index.train_points = spec.index.train_points or 10_000
            self.shelves[spec.name] = Shelf(spec)
            return collection_service_pb2.CreateCollectionResponse(collection=self._collection(self.shelves[spec.name]))

        return self._answer("CreateCollection", request, context, create)

    def GetCollection(self, request: Any, context: Any) -> Any:
        def get() -> Any:
            shelf = self._shelf(request.name, context)
            shelf.polls_until_settled -= 1
            return collection_service_pb2.GetCollectionResponse(collection=self._collection(shelf))

        return self._answer("GetCollection", request, context, get)

    def ListCollections(self, request: Any, context: Any) -> Any:
        def page() -> Any:
            names = [name for name in sorted(self.shelves) if name > request.page_token]
            response = collection_service_pb2.ListCollectionsResponse(
                next_page_token=names[1] if len(names) > 2 else ""
            )
            for name in names[:2]:
                one = self._collection(self.shelves[name])
                one.ClearField("progress")
                one.ClearField("coverage")
                response.collections.append(one)
            return response

        return self._answer("ListCollections", request, context, page)

    def DeleteCollection(self, request: Any, context: Any) -> Any:
        def delete() -> Any:
            self._shelf(request.name, context)
            del self.shelves[request.name]
            return collection_service_pb2.DeleteCollectionResponse()

        return self._answer("DeleteCollection", request, context, delete)

    # Points

    def Upsert(self, request: Any, context: Any) -> Any:
        def upsert() -> Any:
            shelf = self._shelf(request.collection, context)
            dim = shelf.spec.dim
            if request.HasField("packed"):
                ids, payloads = (
                    list(request.packed.ids),
                    list(request.packed.payloads) or [b""] * len(request.packed.ids),
                )
                if len(request.packed.vectors) != 4 * dim * len(ids):
                    raise errors.InvalidRequest("another dimension", reason="WRONG_DIMENSION", field="packed.vectors")
                vectors = np.frombuffer(request.packed.vectors, "<f4").reshape(-1, dim)
                for row, vector in enumerate(vectors):
                    if shelf.spec.metric == types_pb2.METRIC_COSINE and not vector.any():
                        field = f"packed.vectors[{row}]"
                        raise errors.InvalidRequest("the length is zero", reason="ZERO_VECTOR", field=field)
            else:
                if not shelf.spec.embedding_model:
                    raise errors.FailedPrecondition("no embedding model")
                ids, payloads = [one.id for one in request.points], [one.payload for one in request.points]
                vectors = np.stack([embedded(one.text) for one in request.points])
            with self._lock:
                for point_id, vector, payload in zip(ids, vectors, payloads, strict=True):
                    shelf.seqno += 1
                    shelf.points[point_id] = Stored(np.array(vector), payload, shelf.seqno)
                return point_service_pb2.UpsertResponse(upserted=len(ids), consistency_token=self._token(shelf))

        return self._answer("Upsert", request, context, upsert)

    def Delete(self, request: Any, context: Any) -> Any:
        def delete() -> Any:
            shelf = self._shelf(request.collection, context)
            with self._lock:
                shelf.seqno += 1
                gone = [shelf.points.pop(one, None) for one in request.ids]
                deleted = sum(one is not None for one in gone)
                return point_service_pb2.DeleteResponse(deleted=deleted, consistency_token=self._token(shelf))

        return self._answer("Delete", request, context, delete)

    def Get(self, request: Any, context: Any) -> Any:
        def get() -> Any:
            shelf = self._shelf(request.collection, context)
            there = [one for one in request.ids if one in shelf.points]
            return point_service_pb2.GetResponse(points=[self._point(shelf, one, request.with_vector) for one in there])

        return self._answer("Get", request, context, get)

    def Scroll(self, request: Any, context: Any) -> Any:
        def scroll() -> Any:
            shelf = self._shelf(request.collection, context)
            ids = sorted((one for one in shelf.points if one > request.page_token), key=str.encode)
            page = ids[: request.page_size or 100]
            return point_service_pb2.ScrollResponse(
                points=[self._point(shelf, one, request.with_vector) for one in page],
                next_page_token=page[-1] if len(page) < len(ids) else "",
            )

        return self._answer("Scroll", request, context, scroll)

    def Count(self, request: Any, context: Any) -> Any:
        def count() -> Any:
            return point_service_pb2.CountResponse(points=len(self._shelf(request.collection, context).points))

        return self._answer("Count", request, context, count)

    # Search and cluster

    def Search(self, request: Any, context: Any) -> Any:
        def search() -> Any:
            shelf = self._shelf(request.collection, context)
            if not request.k:
                raise errors.InvalidRequest("k must be 1 to 10000, not 0", field="k")
            response = search_service_pb2.SearchResponse(coverage=self._coverage())
            ids = sorted(shelf.points)
            rows = np.stack([shelf.points[one].vector for one in ids]) if ids else np.empty((0, shelf.spec.dim))
            assert request.packed, "the clients ask for columns"
            counts, scores = [], []
            for number, query in enumerate(request.queries):
                given = embedded(query.text) if query.text else np.frombuffer(query.vector, "<f4")
                if len(given) != shelf.spec.dim:
                    field = f"queries[{number}].vector"
                    raise errors.InvalidRequest("another dimension", reason="WRONG_DIMENSION", field=field)
                distances = np.linalg.norm(rows - given, axis=1)
                best = np.argsort(distances, kind="stable")[: request.k]
                counts.append(len(best))
                scores.extend(distances[best])
                found = [shelf.points[ids[at]] for at in best]
                response.packed.ids.extend(ids[at] for at in best)
                if request.with_payload:
                    response.packed.payloads.extend(one.payload for one in found)
                if request.with_vector:
                    response.packed.vectors += b"".join(one.vector.tobytes() for one in found)
            response.packed.counts = np.array(counts, "<u4").tobytes()
            response.packed.scores = np.array(scores, "<f4").tobytes()
            return response

        return self._answer("Search", request, context, search)

    def GetCluster(self, request: Any, context: Any) -> Any:
        def describe() -> Any:
            response = cluster_service_pb2.GetClusterResponse(
                epoch=7, controller="router-0", coordinator_connected=True
            )
            for number in (1, 0):
                response.nodes.add(id=f"node-{number}", address=f"127.0.0.1:{number + 1}", live=True, version="9.9")
            response.nodes[0].unknown_collections.extend(self.unknown_collections)
            for name, shelf in self.shelves.items():
                shard = response.shards.add(collection=name, shard=0, hash_last=2**64 - 1, term=1)
                status = cluster_service_pb2.REPLICA_STATUS_SERVING
                shard.replicas.add(node="node-0", primary=True, status=status, points=len(shelf.points))
            return response

        return self._answer("GetCluster", request, context, describe)

    # Backups: two messages on the way, then the outcome

    def CreateBackup(self, request: Any, context: Any) -> Any:
        def told() -> Any:
            names = list(request.collections) or sorted(self.shelves)
            for name in names:
                self._shelf(name, context)
            backup = cluster_service_pb2.Backup(
                id="b1", destination=request.destination, objects=9, bytes=3 << 20, new_objects=2, new_bytes=1 << 20
            )
            backup.create_time.FromSeconds(1_800_000_000)
            for name in names:
                backup.collections.add(name=name, seqnos=[3, 4])
            return [cluster_service_pb2.CreateBackupResponse(progress=self._so_far(done)) for done in (0, 1)] + [
                cluster_service_pb2.CreateBackupResponse(progress=self._so_far(2), backup=backup)
            ]

        yield from self._answer("CreateBackup", request, context, told)

    def RestoreBackup(self, request: Any, context: Any) -> Any:
        def told() -> Any:
            if request.backup not in ("", "b1"):
                raise errors.NotFound(f"there is no backup {request.backup!r}", reason="BACKUP_NOT_FOUND")
            names = [one.name or one.collection for one in request.collections] or ["films"]
            return [cluster_service_pb2.RestoreBackupResponse(backup="b1", collections=names)]

        yield from self._answer("RestoreBackup", request, context, told)

    @staticmethod
    def _so_far(done: int) -> Any:
        return cluster_service_pb2.TransferProgress(
            shards_total=2, shards_done=done, bytes_total=1 << 20, bytes_done=done << 19, bytes_reused=2 << 20
        )

    # What they share

    def _answer(self, method: str, request: Any, context: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.calls[method] += 1
            self._in_flight += 1
            self.in_flight_max = max(self.in_flight_max, self._in_flight)
            failures = self.failures.get(method)
            failure = failures.pop(0) if failures else None
        try:
            self.before(method)
            if failure is not None:
                self._abort(context, failure)
            try:
                return make()
            except errors.VectorfleetError as error:
                self._abort(context, error)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _abort(self, context: Any, error: errors.VectorfleetError) -> NoReturn:
        context.set_trailing_metadata(errors.trailing_metadata(error))
        context.abort(error.code, error.message)
        raise AssertionError("abort raises")

    def _shelf(self, name: str, context: Any) -> Shelf:
        if name not in self.shelves:
            raise errors.NotFound(f"there is no collection {name!r}")
        return self.shelves[name]

    def _collection(self, shelf: Shelf) -> types_pb2.Collection:
        one = types_pb2.Collection(spec=shelf.spec, uid=shelf.uid, coverage=self._coverage())
        one.create_time.FromSeconds(1_800_000_000)
        one.progress.points = len(shelf.points)
        one.progress.settled = shelf.polls_until_settled <= 0
        return one

    def _coverage(self) -> types_pb2.Coverage:
        answered = self.shards - len(self.missing)
        return types_pb2.Coverage(shards_total=self.shards, shards_answered=answered, missing=self.missing)

    def _token(self, shelf: Shelf) -> bytes:
        shards = [token_pb2.ShardSeqno(shard=shelf.seqno % self.shards, seqno=shelf.seqno)]
        return token_pb2.ConsistencyToken(collection_uid=shelf.uid, shards=shards).SerializeToString()

    def _point(self, shelf: Shelf, point_id: str, with_vector: bool) -> types_pb2.Point:
        stored = shelf.points[point_id]
        vector = stored.vector.tobytes() if with_vector else b""
        return types_pb2.Point(id=point_id, vector=vector, payload=stored.payload, version=stored.version)
