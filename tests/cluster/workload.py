"""Clients that write, delete and read at once, and note what they did and saw (history.py).

They speak the contract itself, not through `vectorfleet.Client`: that one tries again, and each attempt is an event of its own.
No value is written twice, and a value's number decides its vector, so that what an answer shows says which write it saw.

Two kinds of points: a few contended ones (`c…`), all within distance 1 of the origin, that every client changes; and many bulk
ones (`b…`), beyond distance 9, that make replicas seal, train and compact. So the nearest `K_CONTENDED` points of a query near
the origin are all contended ones that there are.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from tests.cluster.history import Call, Recorder, now
from vectorfleet import errors
from vectorfleet.cluster.placement import Placement
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.v1 import cluster_service_pb2 as cluster_pb
from vectorfleet.v1 import cluster_service_pb2_grpc as cluster_grpc
from vectorfleet.v1 import point_service_pb2 as points_pb
from vectorfleet.v1 import point_service_pb2_grpc as points_grpc
from vectorfleet.v1 import search_service_pb2 as search_pb
from vectorfleet.v1 import search_service_pb2_grpc as search_grpc

DIM: Final = 8
CONTENDED: Final = tuple(f"c{number}" for number in range(40))
BULK: Final = 4_000
K_CONTENDED: Final = 2 * len(CONTENDED)
K_ALL: Final = 10_000
TIMEOUT_S: Final = 2.0
_PAUSE_AFTER_FAILURE_S: Final = 0.02
_PAGE: Final = 1_500
_REFUSED: Final = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION})
_AWAY: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
"""What a sound request may meet while processes are killed. Anything else is a fault."""
_GAPS: Final = frozenset(reason for reason, row in errors.REASONS.items() if row.code in _AWAY)

assert BULK + len(CONTENDED) < K_ALL


class Book:
    """Which values there are: what each one's vector is, and which id it was written to."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self._point: dict[int, str] = {}
        self._value_of: dict[bytes, int] = {}

    def new(self, point: str) -> int:
        """A value for a point, never used before."""
        value = next(self._numbers)
        direction = np.random.default_rng(value).standard_normal(DIM)
        direction /= np.linalg.norm(direction)
        length = 0.1 + 0.8 * (value % 997) / 997 if point.startswith("c") else 10.0 + value % 997 / 100
        vector = (direction * length).astype(np.float32)
        self._vectors[value], self._point[value] = vector, point
        self._value_of[vector.tobytes()] = value
        return value

    def vector(self, value: int) -> NDArray[np.float32]:
        """float32[DIM]."""
        return self._vectors[value]

    def value(self, point: str, vector: bytes) -> int | None:
        """The value that this vector of this point is; None: it was never written there."""
        value = self._value_of.get(vector)
        return value if value is not None and self._point[value] == point else None

    def points(self) -> set[str]:
        """All ids that anybody has begun to write."""
        return set(self._point.copy().values())


class Worker:
    """One client of one router; each method is one attempt, noted in the recorder."""

    def __init__(
        self, name: str, router: str, collection: str, placement: Placement, book: Book, recorder: Recorder
    ) -> None:
        self.name = name
        self._collection = collection
        self._placement = placement
        self._book = book
        self._recorder = recorder
        self._token = b""
        self._address = router
        self.backups: list[tuple[str, Call, set[str]]] = []
        """Of each complete one its id, the call that made it, and the ids that were known before it."""
        self._channel = grpc.insecure_channel(router, options=CHANNEL_OPTIONS)
        self._points = points_grpc.PointServiceStub(self._channel)
        self._search = search_grpc.SearchServiceStub(self._channel)
        self._cluster = cluster_grpc.ClusterServiceStub(self._channel)
        self._pause = threading.Event()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def upsert(self, points: Sequence[str], *, spoilt: bool = False) -> bool:
        """Writes a new value to each point; returns whether it was acknowledged.

        Args:
            points: distinct ids.
            spoilt: the last vector holds NaN, so that the whole call must be refused.
        """
        values = {point: self._book.new(point) for point in points}
        matrix = np.stack([self._book.vector(value) for value in values.values()])
        if spoilt:
            matrix[-1, 0] = np.nan
        payloads = [json.dumps({"value": value}).encode() for value in values.values()]
        packed = points_pb.PackedPoints(ids=points, vectors=matrix.tobytes(), payloads=payloads)
        request = points_pb.UpsertRequest(collection=self._collection, packed=packed)
        call = Call(self.name, "upsert", wrote=values)
        answer = self._attempt(call, self._points.Upsert, request, refusable=spoilt)
        if answer is not None:
            self._token = answer.consistency_token
            if answer.upserted != len(values):
                call.faults.append(f"{answer.upserted} of {len(values)} points upserted, and acknowledged")
            if spoilt:
                call.faults.append("a vector with NaN was accepted")
        return answer is not None

    def delete(self, points: Sequence[str]) -> bool:
        """Deletes points; returns whether that was acknowledged."""
        call = Call(self.name, "delete", deleted=tuple(points))
        request = points_pb.DeleteRequest(collection=self._collection, ids=points)
        answer = self._attempt(call, self._points.Delete, request)
        if answer is not None:
            self._token = answer.consistency_token
            call.deleted_count = answer.deleted
        return answer is not None

    def get(self, points: Sequence[str]) -> bool:
        """Reads points by id."""
        call = Call(self.name, "get")
        request = points_pb.GetRequest(collection=self._collection, ids=points, with_vector=True)
        answer = self._attempt(call, self._points.Get, request)
        if answer is not None:
            self._see(call, [(p.id, p.vector, p.payload, p.version) for p in answer.points], with_payload=True)
            call.absent = tuple(point for point in points if point not in call.seen)
        return answer is not None

    def search_contended(self, query: NDArray[np.float32], *, with_payload: bool, with_token: bool) -> bool:
        """Finds all contended points: an exact search near the origin."""
        return self._search_exactly(query, K_CONTENDED, set(CONTENDED), with_payload, with_token)

    def search_everything(self, query: NDArray[np.float32]) -> bool:
        """Finds all points there are."""
        return self._search_exactly(query, K_ALL, self._book.points(), False, False)

    def search_roughly(self, query: NDArray[np.float32]) -> bool:
        """Finds some points: what it shows must be true, what it leaves out says nothing."""
        call = Call(self.name, "search")
        request = self._request(query, 20, exact=False, with_payload=True)
        answer = self._attempt(call, self._search.Search, request)
        if answer is not None:
            self._see_hits(call, query, answer, with_payload=True)
        return answer is not None

    def scroll(self) -> int:
        """Walks all points; returns how many there were, -1 where the walk failed."""
        known, seen, start, token = self._book.points(), list[str](), now(), ""
        while True:
            call = Call(self.name, "scroll")
            request = points_pb.ScrollRequest(
                collection=self._collection, page_size=_PAGE, page_token=token, with_vector=True
            )
            answer = self._attempt(call, self._points.Scroll, request)
            if answer is None:
                return -1
            self._see(call, [(p.id, p.vector, p.payload, p.version) for p in answer.points], with_payload=True)
            seen += [point.id for point in answer.points]
            token = answer.next_page_token
            if not token:
                break
        walk = Call(self.name, "walk", start, now(), "ok", absent=tuple(known.difference(seen)))
        if seen != sorted(set(seen), key=str.encode):
            walk.faults.append("the walk is not in the order of ids, or shows one twice")
        self._recorder.add(walk)
        return len(seen)

    def count(self) -> int:
        """Counts live points; -1 where that failed."""
        request = points_pb.CountRequest(collection=self._collection)
        answer = self._attempt(Call(self.name, "count"), self._points.Count, request)
        return -1 if answer is None else int(answer.points)

    def back_up(self, place: str) -> None:
        """Backs the collection up; what a backup holds is known once it is restored (`note_backup`)."""
        known, call = self._book.points(), Call(self.name, "backup")
        request = cluster_pb.CreateBackupRequest(destination=place, collections=[self._collection])

        def to_the_end(request: Any, timeout: float) -> Any:
            return list(self._cluster.CreateBackup(request, timeout=timeout))[-1]

        answer = self._attempt(call, to_the_end, request)
        if answer is not None:
            self.backups.append((answer.backup.id, call, known))

    def note_backup(self, restored: str) -> None:
        """Reads a collection that the last backup was restored to: the backup has read those points when it was made."""
        _, call, known = self.backups[-1]
        reader = Worker(self.name, self._address, restored, self._placement, self._book, Recorder())
        walked = reader.scroll()
        pages = reader._recorder.calls
        reader.close()
        call.faults += [fault for page in pages for fault in page.faults]
        if walked >= 0:
            # Within its own store a restored point may count its versions anew.
            call.seen = {point: (value, 0) for page in pages for point, (value, _) in page.seen.items()}
            call.absent = tuple(known.difference(call.seen))

    def _search_exactly(
        self, query: NDArray[np.float32], k: int, known: set[str], with_payload: bool, with_token: bool
    ) -> bool:
        call = Call(self.name, "search")
        request = self._request(query, k, exact=True, with_payload=with_payload)
        if with_token:
            request.consistency_token = self._token
        answer = self._attempt(call, self._search.Search, request)
        if answer is None:
            return False
        self._see_hits(call, query, answer, with_payload)
        gone = {gap.shard for gap in answer.coverage.missing}
        unseen = [point for point in known if point not in call.seen]
        shards = self._placement.shards_of(unseen)
        call.absent = tuple(point for point, shard in zip(unseen, shards, strict=True) if int(shard) not in gone)
        return not gone

    def _request(
        self, query: NDArray[np.float32], k: int, *, exact: bool, with_payload: bool
    ) -> search_pb.SearchRequest:
        return search_pb.SearchRequest(
            collection=self._collection,
            queries=[search_pb.Query(vector=query.tobytes())],
            k=k,
            params=search_pb.SearchParams(exact=exact),
            with_payload=with_payload,
            with_vector=True,
        )

    def _see_hits(
        self, call: Call, query: NDArray[np.float32], answer: search_pb.SearchResponse, with_payload: bool
    ) -> None:
        hits = answer.results[0].hits
        call.faults += [
            f"shard {gap.shard} is missing: {gap.reason}, {gap.message}"
            for gap in answer.coverage.missing
            if gap.reason not in _GAPS
        ]
        names = [hit.id for hit in hits]
        if len(set(names)) != len(names):
            call.faults.append(f"ids stand twice: {sorted(name for name in set(names) if names.count(name) > 1)}")
        self._see(call, [(hit.id, hit.vector, hit.payload, 0) for hit in hits], with_payload)
        if not hits:
            return
        vectors = np.stack([np.frombuffer(hit.vector, np.float32) for hit in hits]).astype(np.float64)
        truth = np.sqrt(np.square(vectors - query.astype(np.float64)).sum(axis=1))
        scores = np.array([hit.score for hit in hits])
        wrong = np.flatnonzero(np.abs(scores - truth) > 1e-5 * truth + 1e-6)
        call.faults += [f"{names[row]} has score {scores[row]}, its vector {truth[row]}" for row in wrong[:3]]
        if np.any(np.diff(scores) < 0):
            call.faults.append("the hits are not in the order of their scores")

    def _see(self, call: Call, shown: Iterable[tuple[str, bytes, bytes, int]], with_payload: bool) -> None:
        for point, vector, payload, version in shown:
            value = self._book.value(point, vector)
            if value is None:
                call.faults.append(f"{point} has a vector that was never written to it")
                continue
            if with_payload and json.loads(payload or b"{}").get("value") != value:
                call.faults.append(f"{point} has the vector of value {value} with the payload {payload!r}")
            call.seen[point] = (value, version)

    def _attempt(self, call: Call, method: Callable[..., Any], request: Any, *, refusable: bool = False) -> Any:
        call.start = now()
        answer = None
        try:
            answer = method(request, timeout=TIMEOUT_S)
            call.outcome = "ok"
        except grpc.RpcError as error:
            failure = errors.from_rpc_error(error)
            call.error = failure.reason
            call.outcome = "failed" if failure.code in _REFUSED else "unknown"
            if not (failure.code in _AWAY or (refusable and call.outcome == "failed")):
                call.faults.append(f"failed with {failure}")
            self._pause.wait(_PAUSE_AFTER_FAILURE_S)  # or a dead cluster would fill the history
        call.end = now()
        self._recorder.add(call)
        return answer


def contend(worker: Worker, rng: np.random.Generator, stop: threading.Event) -> None:
    """Changes and reads contended points until told to stop."""
    while not stop.is_set():
        some = [str(name) for name in rng.choice(CONTENDED, int(rng.integers(1, 6)), replace=False)]
        query = near_origin(rng)
        choice = rng.random()
        if choice < 0.35:
            worker.upsert(some)
        elif choice < 0.5:
            worker.delete(some)
        elif choice < 0.55:
            worker.upsert(some, spoilt=True)
        elif choice < 0.75:
            worker.get(some)
        else:
            worker.search_contended(query, with_payload=bool(rng.random() < 0.5), with_token=bool(rng.random() < 0.5))


def load(worker: Worker, rng: np.random.Generator, stop: threading.Event) -> None:
    """Loads the bulk, then overwrites and deletes parts of it until told to stop."""
    batches = [[f"b{number}" for number in range(first, first + 250)] for first in range(0, BULK, 250)]
    for batch in batches:
        while not stop.is_set() and not worker.upsert(batch):
            pass
    while not stop.is_set():
        batch = batches[int(rng.integers(len(batches)))]
        part = [batch[at] for at in rng.choice(len(batch), int(rng.integers(1, len(batch))), replace=False)]
        if rng.random() < 0.4:
            worker.delete(part)
        else:
            worker.upsert(part)


def look(worker: Worker, rng: np.random.Generator, stop: threading.Event) -> None:
    """Reads on, in every way there is, until told to stop."""
    while not stop.is_set():
        choice = rng.random()
        if choice < 0.1:
            worker.search_everything(near_origin(rng))
        elif choice < 0.15:
            worker.scroll()
        elif choice < 0.6:
            worker.search_contended(near_origin(rng), with_payload=False, with_token=False)
        else:
            worker.search_roughly((10.0 * rng.standard_normal(DIM)).astype(np.float32))


def near_origin(rng: np.random.Generator) -> NDArray[np.float32]:
    """A query to which every contended point is nearer than any other: float32[DIM]."""
    return (0.01 * rng.standard_normal(DIM)).astype(np.float32)


ROLES: Final[Mapping[str, Callable[[Worker, np.random.Generator, threading.Event], None]]] = {
    "writer-0": contend,
    "writer-1": contend,
    "loader": load,
    "reader": look,
}
"""The clients of a round, by name."""
