"""Public requests turned into checked values: pure functions that raise, or return what the rest may trust.

Nothing behind this module looks at a vector, an id or a number again: what comes out is finite, of the right dimension and
within the limits. Every refusal is an `InvalidRequest` that names the field (`queries[3].vector`). Vectors stay packed: their
bytes are joined, read by numpy once, and checked once a batch; only a batch that fails is searched for the row at fault.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vectorfleet import filter_rules, limits
from vectorfleet.errors import InvalidRequest
from vectorfleet.v1 import point_service_pb2, search_service_pb2, types_pb2

Matrix: TypeAlias = NDArray[np.float32]
"""Vectors, float32[rows, dim], C-contiguous."""

HIT_BYTES: Final = 64
PAYLOAD_BYTES: Final = 256
_SQUARED_LENGTH_MAX: Final = limits.VECTOR_LENGTH_MAX**2

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_FLOAT32: Final = np.dtype("<f4")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""In JSON, half of a pair may be the whole of an escape: no reader could write such a text again as UTF-8."""
_ID_CHARS_SURELY_FINE: Final = limits.ID_BYTES_MAX // 4


class _Source(Protocol):
    """What a point and a query have in common."""

    vector: bytes
    text: str

    @property
    def values(self) -> types_pb2.FloatVector: ...
    def WhichOneof(self, oneof_group: Any, /) -> Any: ...  # noqa: N802


@dataclass(frozen=True, slots=True)
class VectorsAndTexts:
    """Rows of which some are vectors and some are texts that must be embedded first."""

    vectors: Matrix
    """float32[rows, dim]; zeros where a text stands."""
    text_rows: tuple[int, ...]
    texts: tuple[str, ...]


class SearchOptions(NamedTuple):
    """How a search is to be made: equal options may share a batch. A tuple, since it is hashed several times a search."""

    k: int
    nprobe: int = 0
    oversample: float = 0.0
    exact: bool = False
    with_payload: bool = False
    with_vector: bool = False
    wanted: bytes = b""
    """A `Filter`; empty: none. Bytes, so that options can be compared."""

    def hit_bytes(self, dim: int) -> int:
        """What one hit is taken to be, as far as it can be told beforehand; the limits of messages bound what it is."""
        return HIT_BYTES + self.with_payload * PAYLOAD_BYTES + self.with_vector * 4 * dim


@dataclass(frozen=True, slots=True)
class Points:
    """Points to be written. Ids may repeat until `last_of_each_id`."""

    ids: list[str]
    vectors: Matrix
    payloads: list[bytes]
    """One a point, empty where it has none; or no entries at all."""

    def last_of_each_id(self) -> Points:
        """The same points, of each id only the last."""
        row_of = dict(zip(self.ids, range(len(self.ids)), strict=True))
        if len(row_of) == len(self.ids):
            return self
        rows = sorted(row_of.values())
        return Points(
            [self.ids[row] for row in rows],
            np.ascontiguousarray(self.vectors[rows]),
            [self.payloads[row] for row in rows] if self.payloads else [],
        )


def refuse(field: str, message: str, *, reason: str = "INVALID_FIELD") -> NoReturn:
    """Raises `InvalidRequest` for a field."""
    raise InvalidRequest(message, reason=reason, field=field)


def collection_name(name: str, field: str = "collection") -> str:
    """Returns the name of a collection if it is one."""
    if not name:
        refuse(field, "a collection's name is required")
    if len(name) > limits.COLLECTION_NAME_CHARS_MAX:
        refuse(field, f"a name has at most {limits.COLLECTION_NAME_CHARS_MAX} characters; this one has {len(name)}")
    if _NAME.fullmatch(name) is None:
        refuse(field, "a name consists of A-Z a-z 0-9 . _ - and starts with a letter or digit")
    return name


def search_options(request: search_service_pb2.SearchRequest) -> SearchOptions:
    """Returns a search's checked options, defaults filled in."""
    k = request.k if request.HasField("k") else limits.K_DEFAULT
    if not 1 <= k <= limits.K_MAX:
        refuse("k", f"k must be 1 to {limits.K_MAX}, not {k}")
    params = request.params
    if params.nprobe > limits.NPROBE_MAX:
        refuse("params.nprobe", f"nprobe must be 1 to {limits.NPROBE_MAX}, or 0 for the default, not {params.nprobe}")
    oversample = params.oversample
    if oversample != 0 and not 1 <= oversample <= limits.OVERSAMPLE_MAX:  # NaN fails both
        refuse(
            "params.oversample",
            f"oversample must be 1 to {limits.OVERSAMPLE_MAX:g}, or 0 for the default, not {oversample:g}",
        )
    wanted = b""
    if request.HasField("filter"):
        filter_rules.check(request.filter)
        wanted = request.filter.SerializeToString(deterministic=True)  # the same filter gives the same bytes
    return SearchOptions(k, params.nprobe, oversample, params.exact, request.with_payload, request.with_vector, wanted)


def min_coverage(request: search_service_pb2.SearchRequest) -> float:
    """Returns the share of shards that must answer, 0 to 1."""
    if not 0 <= request.min_coverage <= 1:
        refuse("min_coverage", f"min_coverage must be 0 to 1, not {request.min_coverage:g}")
    return request.min_coverage


def queries(request: search_service_pb2.SearchRequest, dim: int) -> VectorsAndTexts:
    """Returns a search's queries; vectors are of `dim` components, but not checked further (`check_vectors`)."""
    given = request.queries
    if not 1 <= len(given) <= limits.QUERIES_MAX:
        refuse("queries", f"a call carries 1 to {limits.QUERIES_MAX} queries; this one has {len(given)}")
    chunks = [query.vector for query in given]
    if set(map(len, chunks)) == {4 * dim}:
        return VectorsAndTexts(_matrix(b"".join(chunks), dim), (), ())
    return _mixed(given, "query", dim, lambda row, form: f"queries[{row}].{form}")


def packed_points(packed: point_service_pb2.PackedPoints, dim: int, metric: int) -> Points:
    """Returns the checked points of a packed batch: ids, vectors and payloads."""
    ids = point_ids(packed.ids, "packed.ids")
    if len(packed.vectors) != 4 * dim * len(ids):
        refuse(
            "packed.vectors",
            f"{len(ids)} vectors of dimension {dim} are {4 * dim * len(ids)} bytes of float32; "
            f"these are {len(packed.vectors)}",
            reason="WRONG_DIMENSION",
        )
    vectors = _matrix(packed.vectors, dim)
    check_vectors(vectors, metric, lambda row: f"packed.vectors[{row}]")
    payloads = list(packed.payloads)
    if payloads and len(payloads) != len(ids):
        refuse("packed.payloads", f"there must be no payloads or one for each id; {len(payloads)} for {len(ids)} ids")
    for row, payload in enumerate(payloads):
        if payload:
            check_payload(payload, f"packed.payloads[{row}]")
    return Points(ids, vectors, payloads if any(payloads) else [])


def points(
    given: Sequence[point_service_pb2.PointInput], dim: int, metric: int
) -> tuple[list[str], VectorsAndTexts, list[bytes]]:
    """Returns ids, vectors or texts, and payloads of points; the text is in its payload already."""
    ids = _ids([point.id for point in given], lambda row: f"points[{row}].id")
    sources = _mixed(given, "source", dim, lambda row, form: f"points[{row}].{form}")
    payloads = [point.payload for point in given]
    texts = dict(zip(sources.text_rows, sources.texts, strict=True))
    for row, payload in enumerate(payloads):
        field = f"points[{row}].payload"
        content = check_payload(payload, field) if payload else {}
        if row in texts:
            payloads[row] = payload_with_text(payload, content, texts[row], field)
    check_vectors(sources.vectors, metric, lambda row: f"points[{row}].{given[row].WhichOneof('source')}", skip=texts)
    return ids, sources, payloads


def point_ids(ids: Sequence[str], field: str) -> list[str]:
    """Returns checked ids, 1 to 10,000 of them."""
    if not 1 <= len(ids) <= limits.POINTS_PER_CALL_MAX:
        refuse(field, f"a call carries 1 to {limits.POINTS_PER_CALL_MAX} points; this one has {len(ids)}")
    return _ids(list(ids), lambda row: f"{field}[{row}]")


def check_vectors(vectors: Matrix, metric: int, field: Callable[[int], str], skip: Container[int] = ()) -> None:
    """Refuses NaN, infinity, vectors too long for float32 arithmetic, and zero vectors under COSINE.

    Args:
        vectors: float32[rows, dim].
        metric: `vectorfleet.v1.Metric`.
        field: names the field of a row.
        skip: rows that hold no vector yet.
    """
    flat = vectors.ravel()
    whole = float(np.vdot(flat, flat))  # of all rows together: if it is small enough, so is each row's
    if whole <= _SQUARED_LENGTH_MAX and (metric != types_pb2.METRIC_COSINE or (whole > 0 and len(vectors) == 1)):
        return
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared = np.einsum("ij,ij->i", vectors, vectors)
    fine = squared <= _SQUARED_LENGTH_MAX  # NaN and infinity fail this, too
    if metric == types_pb2.METRIC_COSINE:
        fine &= squared > 0
    for row in np.flatnonzero(~fine):
        if row not in skip:
            _refuse_vector(vectors[row], field(int(row)))


def check_payload(payload: bytes, field: str) -> dict[str, object]:
    """Returns the JSON object that a payload holds."""
    _check_payload_size(payload, field)
    try:
        content = json.loads(payload.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(payload):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        refuse(
            field, "the payload holds half of a surrogate pair, which is not valid Unicode", reason="INVALID_PAYLOAD"
        )
    except UnicodeDecodeError as error:
        refuse(field, f"the payload is not valid UTF-8 at byte {error.start}", reason="INVALID_PAYLOAD")
    except RecursionError:
        refuse(field, "the payload is nested too deeply", reason="INVALID_PAYLOAD")
    except ValueError as error:
        refuse(field, f"the payload is not JSON: {error}", reason="INVALID_PAYLOAD")
    if not isinstance(content, dict):
        kind = type(content).__name__
        refuse(field, f"the payload must be a JSON object, not {kind}", reason="INVALID_PAYLOAD")
    return content


def payload_with_text(payload: bytes, content: dict[str, object], text: str, field: str) -> bytes:
    """Returns a payload that keeps `text` under "text"; what the caller wrote stays as it is, byte for byte."""
    if "text" in content:
        if content["text"] != text:
            refuse(field, 'the payload has another "text" than the point', reason="INVALID_PAYLOAD")
        return payload
    entry = f'"text":{json.dumps(text, ensure_ascii=False)}'.encode()
    head = payload.rstrip()[:-1] + b"," if content else b"{"
    joined = head + entry + b"}"
    _check_payload_size(joined, field)
    return joined


def collection_spec(spec: types_pb2.CollectionSpec) -> None:
    """Checks all of a collection's specification that can be judged without the cluster and the model."""
    collection_name(spec.name, "spec.name")
    if spec.dim > limits.DIM_MAX:
        refuse("spec.dim", f"dim must be 1 to {limits.DIM_MAX}, not {spec.dim}")
    if spec.dim == 0 and not spec.embedding_model:
        refuse("spec.dim", "dim is required where no embedding_model is given")
    if spec.metric not in types_pb2.Metric.values():
        refuse("spec.metric", f"there is no metric {spec.metric}")
    if spec.shards > limits.SHARDS_MAX:
        refuse("spec.shards", f"shards must be 1 to {limits.SHARDS_MAX}, or 0 for one a node, not {spec.shards}")
    if spec.replicas > limits.REPLICAS_MAX:
        refuse("spec.replicas", f"this release keeps {limits.REPLICAS_MAX} replica of a shard, not {spec.replicas}")
    if len(spec.embedding_model.encode()) > limits.PAYLOAD_BYTES_MAX:
        refuse("spec.embedding_model", "the model's name is too long")
    _index(spec.index)


def check_subquantisers(m: int, dim: int) -> None:
    """Refuses a number of sub-quantisers that does not divide the dimension."""
    if m and dim % m:
        divisors = [d for d in range(1, dim + 1) if dim % d == 0]
        near = min(divisors, key=lambda d: abs(d - m))
        refuse("spec.index.m", f"m must divide dim: {m} does not divide {dim}; the nearest that does is {near}")


def page_size(size: int, default: int, most: int) -> int:
    """Returns how many entries a page has."""
    if size > most:
        refuse("page_size", f"page_size must be 1 to {most}, or 0 for {default}, not {size}")
    return size or default


def _index(index: types_pb2.IndexSpec) -> None:
    if index.kind not in types_pb2.IndexKind.values():
        refuse("spec.index.kind", f"there is no index kind {index.kind}")
    if index.kind == types_pb2.INDEX_KIND_FLAT and (index.nlist or index.m):
        refuse("spec.index", "a flat index has neither lists nor sub-quantisers: leave nlist and m out")
    if index.nlist > limits.NLIST_MAX:
        refuse("spec.index.nlist", f"nlist must be 1 to {limits.NLIST_MAX}, or 0 for the default, not {index.nlist}")
    if index.train_points and not limits.TRAIN_POINTS_MIN <= index.train_points <= limits.TRAIN_POINTS_MAX:
        refuse(
            "spec.index.train_points",
            f"train_points must be {limits.TRAIN_POINTS_MIN} to {limits.TRAIN_POINTS_MAX}, or 0 for "
            f"{limits.TRAIN_POINTS_DEFAULT}, not {index.train_points}",
        )


def _mixed(given: Sequence[_Source], oneof: str, dim: int, field: Callable[[int, str], str]) -> VectorsAndTexts:
    """Reads rows that come as bytes, as numbers or as text."""
    vectors = np.zeros((len(given), dim), np.float32)
    text_rows: list[int] = []
    texts: list[str] = []
    for row, item in enumerate(given):
        form = item.WhichOneof(oneof)
        if form == "vector":
            vectors[row] = _row(item.vector, dim, field(row, form))
        elif form == "values":
            numbers = np.asarray(item.values.values, np.float32)
            vectors[row] = _row(numbers.tobytes(), dim, field(row, form))
        elif form == "text":
            text_rows.append(row)
            texts.append(_text(item.text, field(row, form)))
        else:
            refuse(field(row, "vector"), "one of vector, values and text is required")
    return VectorsAndTexts(vectors, tuple(text_rows), tuple(texts))


def _row(raw: bytes, dim: int, field: str) -> Matrix:
    if not raw:
        refuse(field, "the vector is empty")
    if len(raw) != 4 * dim:
        many = f"{len(raw) // 4} components" if len(raw) % 4 == 0 else f"{len(raw)} bytes, which is not float32,"
        refuse(field, f"the vector has {many}, but the collection's dimension is {dim}", reason="WRONG_DIMENSION")
    return np.frombuffer(raw, _FLOAT32)


def _text(text: str, field: str) -> str:
    if not text:
        refuse(field, "the text is empty")
    size = len(text.encode())
    if size > limits.TEXT_BYTES_MAX:
        refuse(field, f"a text has at most {limits.TEXT_BYTES_MAX} bytes; this one has {size}")
    return text


def _matrix(raw: bytes, dim: int) -> Matrix:
    return np.frombuffer(raw, _FLOAT32).reshape(-1, dim)


def _ids(ids: list[str], field: Callable[[int], str]) -> list[str]:
    for row, point_id in enumerate(ids):
        if not point_id:
            refuse(field(row), "an id is 1 to 256 bytes; this one is empty", reason="INVALID_ID")
        if len(point_id) > _ID_CHARS_SURELY_FINE:
            size = len(point_id.encode())
            if size > limits.ID_BYTES_MAX:
                refuse(
                    field(row), f"an id is 1 to {limits.ID_BYTES_MAX} bytes; this one has {size}", reason="INVALID_ID"
                )
    return ids


def _refuse_vector(vector: Matrix, field: str) -> NoReturn:
    for position in np.flatnonzero(~np.isfinite(vector)):
        refuse(field, f"component {position} of the vector is {vector[position]}", reason="NOT_FINITE")
    if np.abs(vector).max() > 1:
        refuse(
            field,
            f"the vector is too long for float32: its length must stay below {limits.VECTOR_LENGTH_MAX:g}",
            reason="NOT_FINITE",
        )
    refuse(
        field,
        "COSINE needs a direction, and the length of this vector is zero in float32",
        reason="ZERO_VECTOR",
    )


def _check_payload_size(payload: bytes, field: str) -> None:
    if len(payload) > limits.PAYLOAD_BYTES_MAX:
        refuse(
            field,
            f"a payload has at most {limits.PAYLOAD_BYTES_MAX} bytes (the text of a point counts); this one has "
            f"{len(payload)}",
            reason="PAYLOAD_TOO_LARGE",
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is beyond what a number can be")
    return number
