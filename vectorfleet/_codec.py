"""Arguments → requests: what the two clients send, made by pure functions (`_answers` reads what comes back).

A method that takes many rows becomes several calls (`Call`), each within the limits of one message and each knowing which of the
caller's rows it carries, so that a server's complaint about `packed.vectors[17]` of the third call comes back as
`vectors[10017]`. Knows no channel, no clock and no retry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Generic, SupportsIndex, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike

from vectorfleet import _arguments as arguments
from vectorfleet import _filters as filters
from vectorfleet import _models as models
from vectorfleet import errors, limits
from vectorfleet._arguments import Filter, Ids, Payloads, refuse
from vectorfleet.v1 import (
    collection_service_pb2,
    point_service_pb2,
    search_service_pb2,
    types_pb2,
)

RequestT = TypeVar("RequestT")

VECTORS_PER_CALL: Final = 5_000
TEXTS_PER_CALL: Final = 128
"""Embedding takes milliseconds a text: a call must be done well within its deadline, even when others wait with it."""
BYTES_PER_CALL: Final = 16 * 1024 * 1024
IDS_PER_GET: Final = 500
VECTOR_CALLS_IN_FLIGHT: Final = 4
TEXT_CALLS_IN_FLIGHT: Final = 2
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_ROW_BYTES: Final = 16
"""What protobuf adds to a row, at most."""

assert max(VECTORS_PER_CALL, TEXTS_PER_CALL) <= limits.POINTS_PER_CALL_MAX
assert BYTES_PER_CALL + 2 * limits.PAYLOAD_BYTES_MAX <= limits.CALL_BYTES_MAX
assert IDS_PER_GET * (limits.PAYLOAD_BYTES_MAX + 4 * limits.DIM_MAX + limits.ID_BYTES_MAX + 64) <= limits.CALL_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Call(Generic[RequestT]):
    """One request of several, and the positions of its rows among the caller's arguments."""

    request: RequestT
    rows: Sequence[int] = ()


# What a field of the contract is called among the arguments of the clients.
_ARGUMENT_OF: Final = {"id": "ids", "vector": "vectors", "values": "vectors", "text": "texts", "payload": "payloads"}
_ROW_FIELD: Final = re.compile(r"(?:packed\.)?(\w+)\[(\d+)\](?:\.(\w+))?")


def located(error: errors.VectorfleetError, rows: Sequence[int] = ()) -> errors.VectorfleetError:
    """Returns the error with its field named as the caller knows it: `packed.vectors[2]` → `vectors[rows[2]]`."""
    field = error.field
    for prefix in ("spec.", "params.", "packed."):
        field = field.removeprefix(prefix)
    row_field = _ROW_FIELD.fullmatch(field)
    if row_field is not None and int(row_field[2]) < len(rows):
        name = _ARGUMENT_OF.get(row_field[3], row_field[1])
        field = f"{name}[{rows[int(row_field[2])]}]"
    return error if field == error.field else errors.error_for(error.reason, error.message, field=field)


# ----------------------------------------------------------------------------------------------------- collections


def create_collection(
    name: str,
    dim: SupportsIndex,
    metric: models.Metric | None,
    shards: SupportsIndex,
    embedding_model: str,
    index: models.IndexOptions | None,
) -> collection_service_pb2.CreateCollectionRequest:
    """Makes the request; raises `InvalidRequest` for words that the contract does not know."""
    spec = types_pb2.CollectionSpec(
        name=arguments.text(name, "name"),
        dim=arguments.unsigned(dim, "dim"),
        shards=arguments.unsigned(shards, "shards"),
        embedding_model=arguments.text(embedding_model, "embedding_model"),
    )
    if metric is not None:
        if not isinstance(metric, str) or metric not in get_args(models.Metric):
            refuse("metric", f"metric must be one of {', '.join(get_args(models.Metric))}, not {metric!r}")
        spec.metric = types_pb2.Metric.Value(f"METRIC_{metric.upper()}")
    if index is not None:
        if not isinstance(index, models.IndexOptions):
            refuse("index", f"index must be IndexOptions, not {type(index).__name__}")
        if index.kind not in get_args(models.IndexKind):
            refuse("index.kind", f"kind must be one of {', '.join(get_args(models.IndexKind))}, not {index.kind!r}")
        spec.index.kind = types_pb2.IndexKind.Value(f"INDEX_KIND_{index.kind.upper()}")
        spec.index.nlist = arguments.unsigned(index.nlist, "index.nlist")
        spec.index.m = arguments.unsigned(index.m, "index.m")
        spec.index.train_points = arguments.unsigned(index.train_points, "index.train_points")
    return collection_service_pb2.CreateCollectionRequest(spec=spec)


def collection_name(name: str) -> str:
    """Returns a name that fits the wire; whether it is one is the server's to judge."""
    return arguments.text(name, "name")


# ---------------------------------------------------------------------------------------------------------- points


@dataclass(frozen=True, slots=True)
class Upsert:
    """The checked calls of one upsert, made one by one as they are sent."""

    calls: Iterable[Call[point_service_pb2.UpsertRequest]]
    in_flight: int


def upsert(
    collection: str, ids: Ids, vectors: ArrayLike | None, texts: Iterable[str] | None, payloads: Payloads | None
) -> Upsert:
    """Checks the arguments of an upsert whole, then cuts it into calls.

    Of rows with the same id only the last is sent: calls in flight together may arrive in any order.
    """
    names = arguments.point_ids(ids)
    bodies = arguments.payload_bytes(payloads, len(names))
    collection = arguments.text(collection, "name")
    if vectors is not None and texts is not None:
        refuse("texts", "give vectors or texts, not both")
    if vectors is not None:
        matrix = arguments.matrix(vectors)
        _same_length("vectors", len(matrix), len(names))

        def packed(rows: list[int]) -> point_service_pb2.UpsertRequest:
            contiguous = rows[-1] - rows[0] + 1 == len(rows)
            block = matrix[rows[0] : rows[-1] + 1] if contiguous else matrix[rows]
            points = point_service_pb2.PackedPoints(
                ids=[names[row] for row in rows],
                vectors=block.tobytes(),
                payloads=[bodies[row] for row in rows] if bodies else (),
            )
            return point_service_pb2.UpsertRequest(collection=collection, packed=points)

        row_bytes = [4 * matrix.shape[1]] * len(names)
        cuts = _cut(_last_of_each(names), names, bodies, row_bytes, VECTORS_PER_CALL)
        return Upsert((Call(packed(rows), rows) for rows in cuts), VECTOR_CALLS_IN_FLIGHT)
    if texts is None:
        refuse("vectors", "give vectors or texts")
    if isinstance(texts, str):
        refuse("texts", "texts must be a sequence of texts, not one string")
    words = arguments.text_list(texts)
    _same_length("texts", len(words), len(names))

    def plain(rows: list[int]) -> point_service_pb2.UpsertRequest:
        points = [
            point_service_pb2.PointInput(id=names[row], text=words[row], payload=bodies[row] if bodies else b"")
            for row in rows
        ]
        return point_service_pb2.UpsertRequest(collection=collection, points=points)

    cuts = _cut(_last_of_each(names), names, bodies, [4 * len(text) for text in words], TEXTS_PER_CALL)
    return Upsert((Call(plain(rows), rows) for rows in cuts), TEXT_CALLS_IN_FLIGHT)


def delete(collection: str, ids: Ids) -> Iterator[Call[point_service_pb2.DeleteRequest]]:
    """Cuts a delete into calls."""
    collection, names = arguments.text(collection, "name"), arguments.point_ids(ids)
    return (
        Call(point_service_pb2.DeleteRequest(collection=collection, ids=names[rows.start : rows.stop]), rows)
        for rows in _ranges(len(names), limits.POINTS_PER_CALL_MAX)
    )


def get(collection: str, ids: Ids, with_vector: bool) -> Iterator[Call[point_service_pb2.GetRequest]]:
    """Cuts a get into calls, each of whose answers surely fits a message."""
    collection, names = arguments.text(collection, "name"), arguments.point_ids(ids)
    with_vector = arguments.flag(with_vector, "with_vector")
    return (
        Call(
            point_service_pb2.GetRequest(
                collection=collection, ids=names[rows.start : rows.stop], with_vector=with_vector
            ),
            rows,
        )
        for rows in _ranges(len(names), IDS_PER_GET)
    )


def scroll(
    collection: str, page_size: SupportsIndex, page_token: str, with_vector: bool
) -> point_service_pb2.ScrollRequest:
    """Makes the request of one page."""
    return point_service_pb2.ScrollRequest(
        collection=arguments.text(collection, "name"),
        page_size=arguments.unsigned(page_size, "page_size"),
        page_token=page_token,
        with_vector=arguments.flag(with_vector, "with_vector"),
    )


# ---------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True, slots=True)
class Manner:
    """How a search asks, checked: all but its queries."""

    options: search_service_pb2.SearchRequest
    wire: bytes
    """The same as it travels: equal where searches ask alike."""
    k: int


@dataclass(frozen=True, slots=True)
class Search:
    """A checked search: what is asked for, and how."""

    manner: Manner
    queries: list[search_service_pb2.Query]
    lane: tuple[bytes, int] | None
    """Searches of one lane ask alike, of one vector each, and so may share a call. None: it has its calls to itself."""

    @property
    def k(self) -> int:
        """Hits a query."""
        return self.manner.k

    @property
    def calls(self) -> Iterator[Call[search_service_pb2.SearchRequest]]:
        """The search, cut into calls of at most 1,024 queries."""
        return (
            Call(search_request(self.manner.options, self.queries[rows.start : rows.stop]), rows)
            for rows in _ranges(len(self.queries), limits.QUERIES_MAX)
        )

    def call(self) -> Call[search_service_pb2.SearchRequest] | None:
        """The search as the one call that it fits; None: it takes several."""
        rows = len(self.queries)
        if rows > limits.QUERIES_MAX:
            return None
        return Call(search_request(self.manner.options, self.queries), range(rows))


def search_request(
    options: search_service_pb2.SearchRequest, queries: Iterable[search_service_pb2.Query]
) -> search_service_pb2.SearchRequest:
    """Makes the request that asks these queries with these options."""
    request = search_service_pb2.SearchRequest(queries=queries)
    request.MergeFrom(options)
    return request


def search(
    collection: str,
    vectors: ArrayLike | None,
    texts: Iterable[str] | None,
    *,
    k: SupportsIndex,
    nprobe: SupportsIndex,
    oversample: float,
    exact: bool,
    filter: Filter | None = None,  # noqa: A002 (the contract's word)
    with_payload: bool,
    with_vector: bool,
    min_coverage: float,
    consistency_token: bytes,
) -> Search:
    """Checks the arguments of a search."""
    queries = _queries(vectors, texts)
    asked: tuple[Any, ...] = (
        collection, k, nprobe, oversample, exact, with_payload, with_vector, min_coverage, consistency_token, filter
    )  # fmt: skip
    manner = _known_manner(*asked) if _PLAIN.issuperset(map(type, asked)) else _manner(*asked)
    alone = len(queries) > 1 or vectors is None
    return Search(manner, queries, None if alone else (manner.wire, len(queries[0].vector)))


def _manner(
    collection: str,
    k: SupportsIndex,
    nprobe: SupportsIndex,
    oversample: float,
    exact: bool,
    with_payload: bool,
    with_vector: bool,
    min_coverage: float,
    consistency_token: bytes,
    filter: Filter | None,  # noqa: A002 (the contract's word)
) -> Manner:
    hits = arguments.unsigned(k, "k")
    options = search_service_pb2.SearchRequest(
        collection=arguments.text(collection, "name"),
        k=hits,
        params=search_service_pb2.SearchParams(
            nprobe=arguments.unsigned(nprobe, "nprobe"),
            oversample=_number(oversample, "oversample"),
            exact=arguments.flag(exact, "exact"),
        ),
        filter=None if filter is None else filters.message(filter),
        with_payload=arguments.flag(with_payload, "with_payload"),
        with_vector=arguments.flag(with_vector, "with_vector"),
        min_coverage=_number(min_coverage, "min_coverage"),
        consistency_token=arguments.token(consistency_token),
        packed=True,
    )
    return Manner(options, options.SerializeToString(deterministic=True), hits)


_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
_known_manner: Final = lru_cache(maxsize=64, typed=True)(_manner)
"""A program asks in few manners, again and again. Only for values that cannot change under the same identity: never a filter."""


def _queries(vectors: ArrayLike | None, texts: Iterable[str] | None) -> list[search_service_pb2.Query]:
    if (vectors is None) == (texts is None):
        refuse("vectors", "give vectors or texts, and not both")
    if texts is not None:
        words = arguments.text_list([texts] if isinstance(texts, str) else texts)
        return [search_service_pb2.Query(text=text) for text in words]
    assert vectors is not None
    matrix = arguments.matrix(vectors, one_is_enough=True)
    if len(matrix) == 1:
        return [search_service_pb2.Query(vector=matrix.tobytes())]
    return [search_service_pb2.Query(vector=row.tobytes()) for row in matrix]


def _number(value: float, field: str) -> float:
    number = arguments.real(value, field)
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        refuse(field, f"{field} must be a finite number, not {number}")
    return number


def _same_length(field: str, rows: int, ids: int) -> None:
    if rows != ids:
        refuse(field, f"there are {rows} {field} for {ids} ids")


def _last_of_each(names: Sequence[str]) -> Sequence[int]:
    row_of = dict(zip(names, range(len(names)), strict=True))
    return range(len(names)) if len(row_of) == len(names) else sorted(row_of.values())


def _cut(
    rows: Sequence[int], names: Sequence[str], bodies: Sequence[bytes], row_bytes: Sequence[int], rows_max: int
) -> Iterator[list[int]]:
    """Cuts rows into runs of at most `rows_max` rows and about `BYTES_PER_CALL` bytes."""
    run: list[int] = []
    size = 0
    for row in rows:
        run.append(row)
        size += row_bytes[row] + 4 * len(names[row]) + (len(bodies[row]) if bodies else 0) + _ROW_BYTES
        if len(run) == rows_max or size >= BYTES_PER_CALL:
            yield run
            run, size = [], 0
    if run:
        yield run


def _ranges(rows: int, most: int) -> Iterator[range]:
    return (range(first, min(first + most, rows)) for first in range(0, rows, most))
