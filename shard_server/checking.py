"""What this node accepts from routers and other nodes: pure functions that raise `InvalidRequest` with the field at fault.

Routers have checked all of it already, with better words. It is checked again, because what gets into a log stays there: a point
that hashes elsewhere could never be deleted, an id that stands twice would be answered twice, a NaN would spoil each search that
meets it. Only payloads are taken as they come: to a node they are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vectorfleet import filter_rules, limits
from vectorfleet.cluster.placement import point_hash
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.errors import InvalidRequest
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.v1 import types_pb2

_ENCODED_KINDS: Final = frozenset(types_pb2.IndexKind.values()) - {types_pb2.INDEX_KIND_FLAT}


def check_mutation(mutation: storage_pb2.Mutation, record: CollectionRecord, shard: ShardAssignment) -> None:
    """Refuses a write that must not get into the log of this shard."""
    kind = mutation.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("the mutation is empty", field="mutation")
    if kind == "delete":
        _check_ids(mutation.delete.ids, shard, "mutation.delete.ids")
        return
    upsert = mutation.upsert
    _check_ids(upsert.ids, shard, "mutation.upsert.ids")
    vectors = _matrix(upsert.vectors, len(upsert.ids), record.dim, "vectors", "mutation.upsert.vectors")
    _check_vectors(vectors, record.metric, "mutation.upsert.vectors")
    if upsert.payloads and len(upsert.payloads) != len(upsert.ids):
        raise InvalidRequest(
            f"{len(upsert.ids)} ids, but {len(upsert.payloads)} payloads", field="mutation.upsert.payloads"
        )
    if any(len(payload) > limits.PAYLOAD_BYTES_MAX for payload in upsert.payloads):
        raise InvalidRequest(
            f"a payload has at most {limits.PAYLOAD_BYTES_MAX} bytes",
            reason="PAYLOAD_TOO_LARGE",
            field="mutation.upsert.payloads",
        )


def check_search(request: pb.SearchRequest) -> None:
    """Refuses a search whose numbers are out of the contract's range."""
    if not 1 <= request.query_count <= limits.QUERIES_MAX:
        raise InvalidRequest(f"query_count must be 1 to {limits.QUERIES_MAX}", field="query_count")
    if not 1 <= request.k <= limits.K_MAX:
        raise InvalidRequest(f"k must be 1 to {limits.K_MAX}", field="k")
    if request.nprobe > limits.NPROBE_MAX:
        raise InvalidRequest(f"nprobe must be at most {limits.NPROBE_MAX}", field="nprobe")
    if request.oversample != 0 and not 1 <= request.oversample <= limits.OVERSAMPLE_MAX:  # NaN fails both
        raise InvalidRequest(f"oversample must be 0, or 1 to {limits.OVERSAMPLE_MAX:g}", field="oversample")
    if not request.targets:
        raise InvalidRequest("name at least one shard", field="targets")
    if len({target.shard for target in request.targets}) != len(request.targets):
        raise InvalidRequest("a shard stands twice", field="targets")
    if request.HasField("filter"):
        filter_rules.check(request.filter)


def query_matrix(request: pb.SearchRequest, record: CollectionRecord) -> NDArray[np.float32]:
    """Views a request's vectors as float32[query_count, dim], without a copy."""
    vectors = _matrix(request.vectors, request.query_count, record.dim, "queries", "vectors")
    _check_vectors(vectors, record.metric, "vectors")
    return vectors


def check_training(request: pb.TrainCodebookRequest) -> None:
    """Refuses a training that no controller would ask for."""
    if not (request.version and request.nlist and request.m and request.sources):
        raise InvalidRequest("a training needs a version, nlist, m and sources")
    if request.nlist > limits.NLIST_MAX:
        raise InvalidRequest(f"nlist must be 1 to {limits.NLIST_MAX}", field="nlist")
    if request.m > limits.DIM_MAX:
        raise InvalidRequest(f"m must be 1 to {limits.DIM_MAX}", field="m")
    if request.kind not in _ENCODED_KINDS:
        raise InvalidRequest(f"an index of kind {request.kind} needs no codebook", field="kind")
    if len(request.sources) > limits.SHARDS_MAX:
        raise InvalidRequest(f"a collection has at most {limits.SHARDS_MAX} shards", field="sources")


def _check_ids(ids: Sequence[str], shard: ShardAssignment, field: str) -> None:
    if not 1 <= len(ids) <= limits.POINTS_PER_CALL_MAX:
        raise InvalidRequest(f"name 1 to {limits.POINTS_PER_CALL_MAX} ids", field=field)
    if len(set(ids)) != len(ids):
        raise InvalidRequest("an id stands twice", reason="INVALID_ID", field=field)
    for row, point_id in enumerate(ids):
        if not point_id or (len(point_id) > limits.ID_BYTES_MAX // 4 and len(point_id.encode()) > limits.ID_BYTES_MAX):
            raise InvalidRequest(
                f"an id is 1 to {limits.ID_BYTES_MAX} bytes", reason="INVALID_ID", field=f"{field}[{row}]"
            )
        if not shard.hash_first <= point_hash(point_id) <= shard.hash_last:
            raise InvalidRequest(
                f"the id belongs to another shard than {shard.shard}", reason="INVALID_ID", field=f"{field}[{row}]"
            )


def _matrix(raw: bytes, rows: int, dim: int, what: str, field: str) -> NDArray[np.float32]:
    if len(raw) != 4 * dim * rows:
        raise InvalidRequest(
            f"{rows} {what} of dimension {dim} take {4 * dim * rows} bytes, not {len(raw)}",
            reason="WRONG_DIMENSION",
            field=field,
        )
    return np.frombuffer(raw, "<f4").reshape(rows, dim)


def _check_vectors(vectors: NDArray[np.float32], metric: int, field: str) -> None:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared = np.vecdot(vectors, vectors)
    if not bool((squared <= limits.VECTOR_LENGTH_MAX**2).all()):  # NaN and infinity fail this, too
        raise InvalidRequest("a vector is not finite, or too long for float32", reason="NOT_FINITE", field=field)
    if metric == types_pb2.METRIC_COSINE and not bool((squared > 0).all()):
        raise InvalidRequest("COSINE needs a direction, and a vector is zero", reason="ZERO_VECTOR", field=field)
