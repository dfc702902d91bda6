"""Responses → results: what the servers said, as the values that callers see. Pure, and lenient towards newer servers."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np

from vectorfleet import _models as models
from vectorfleet.internal.v1 import token_pb2
from vectorfleet.v1 import cluster_service_pb2, point_service_pb2, search_service_pb2, types_pb2


def collection(message: types_pb2.Collection) -> models.Collection:
    """Reads a collection; `progress` and `coverage` are None where the server left them out."""
    spec = message.spec
    return models.Collection(
        name=spec.name,
        uid=message.uid,
        dim=spec.dim,
        metric=cast(models.Metric, _word(types_pb2.Metric, spec.metric)),
        shards=spec.shards,
        replicas=spec.replicas,
        index=models.IndexOptions(
            kind=cast(models.IndexKind, _word(types_pb2.IndexKind, spec.index.kind)),
            nlist=spec.index.nlist,
            m=spec.index.m,
            train_points=spec.index.train_points,
        ),
        embedding_model=spec.embedding_model,
        create_time=message.create_time.ToDatetime(tzinfo=datetime.UTC),
        progress=_progress(message.progress) if message.HasField("progress") else None,
        coverage=coverage(message.coverage) if message.HasField("coverage") else None,
    )


def wait_story(name: str, seen: models.Collection | None, failure: Exception | None, timeout_s: float) -> str:
    """Tells how far an index has come that was not settled in time, and what stood in the way."""
    story = f"the index of {name} did not settle within {timeout_s:g} s"
    if seen is not None and seen.progress is not None:
        progress = seen.progress
        story += (
            f": {progress.indexed_points} of {progress.points} points are indexed, {progress.buffered_points} in buffers, "
            f"codebook version {progress.codebook.version}"
        )
    if seen is not None and seen.coverage is not None and not seen.coverage.complete:
        story += f"; {seen.coverage.shards_answered} of {seen.coverage.shards_total} shards answered"
    return story if failure is None else f"{story}; {failure}"


def upsert_result(responses: Sequence[point_service_pb2.UpsertResponse]) -> models.UpsertResult:
    """Adds up the answers of one upsert."""
    upserted = sum(response.upserted for response in responses)
    return models.UpsertResult(upserted, merged_token([response.consistency_token for response in responses]))


def delete_result(responses: Sequence[point_service_pb2.DeleteResponse]) -> models.DeleteResult:
    """Adds up the answers of one delete."""
    deleted = sum(response.deleted for response in responses)
    return models.DeleteResult(deleted, merged_token([response.consistency_token for response in responses]))


def points(messages: Iterable[types_pb2.Point]) -> list[models.Point]:
    """Reads stored points."""
    return [
        models.Point(point.id, point.version, models.payload_of(point.payload), models.vector_of(point.vector))
        for point in messages
    ]


def merged_token(tokens: Sequence[bytes]) -> bytes:
    """Makes one consistency token of those of several calls: of each shard the latest write.

    The one place on the client's side that looks into a token; the tokens of one collection are taken for granted.
    """
    if len(tokens) == 1:
        return tokens[0]
    merged = token_pb2.ConsistencyToken()
    seqnos: dict[int, int] = {}
    for token in tokens:
        part = token_pb2.ConsistencyToken.FromString(token)
        merged.collection_uid = part.collection_uid or merged.collection_uid
        for written in part.shards:
            seqnos[written.shard] = max(written.seqno, seqnos.get(written.shard, 0))
    merged.shards.extend(token_pb2.ShardSeqno(shard=shard, seqno=seqnos[shard]) for shard in sorted(seqnos))
    return merged.SerializeToString(deterministic=True)


def search_result(responses: Sequence[search_service_pb2.SearchResponse], k: int) -> models.SearchResult:
    """Joins the answers of one search; a shard that is missing from one call is missing from the result."""
    if len(responses) == 1:
        (only,) = responses
        return models.SearchResult(hit_columns(only.packed), k, coverage(only.coverage), matching(only))
    coverages = [coverage(response.coverage) for response in responses]
    missing = {gap.shard: gap for one in coverages for gap in one.missing}
    total = max(one.shards_total for one in coverages)
    answered = min(total - len(missing), *(one.shards_answered for one in coverages), total)
    joined = models.Coverage(total, answered, tuple(missing[shard] for shard in sorted(missing)))
    parts = [hit_columns(response.packed) for response in responses]
    counts = [one for one in map(matching, responses) if one is not None]
    return models.SearchResult(_joined(parts), k, joined, min(counts, default=None))


def matching(response: search_service_pb2.SearchResponse) -> int | None:
    """How many points pass the filter of one call; None where it had none."""
    return response.matching_points if response.HasField("matching_points") else None


def hit_columns(packed: search_service_pb2.PackedHits) -> models.HitColumns:
    """Reads the hits of one answer, without a copy but of the ids."""
    counts = np.frombuffer(packed.counts, "<u4").tolist()
    scores = np.frombuffer(packed.scores, models.FLOAT32)
    vectors = np.frombuffer(packed.vectors, models.FLOAT32).reshape(len(scores), -1) if packed.vectors else None
    return models.HitColumns(_bounds(counts), list(packed.ids), scores, list(packed.payloads), vectors)


def _joined(parts: Sequence[models.HitColumns]) -> models.HitColumns:
    vectors = [part.vectors for part in parts if part.vectors is not None]
    return models.HitColumns(
        _bounds([end - begin for part in parts for begin, end in pairwise(part.bounds)]),
        [one for part in parts for one in part.ids],
        np.concatenate([part.scores for part in parts]),
        [one for part in parts for one in part.payloads],
        np.concatenate(vectors) if vectors else None,
    )


def _bounds(counts: Iterable[int]) -> list[int]:
    return list(accumulate(counts, initial=0))


def cluster_info(message: cluster_service_pb2.GetClusterResponse) -> models.ClusterInfo:
    """Reads the state of the cluster."""
    nodes = [
        models.NodeState(
            node.id,
            node.address,
            node.live,
            node.replicas,
            node.resident_bytes,
            node.mapped_resident_bytes,
            node.disk_free_bytes,
            node.version,
            tuple(node.unknown_collections),
            node.memory_used_bytes,
            node.memory_limit_bytes,
        )
        for node in message.nodes
    ]
    shards = [
        models.ShardState(
            shard.collection,
            shard.shard,
            shard.hash_first,
            shard.hash_last,
            shard.term,
            tuple(_replica(replica) for replica in shard.replicas),
        )
        for shard in message.shards
    ]
    return models.ClusterInfo(
        message.epoch,
        message.controller,
        message.coordinator_connected,
        tuple(sorted(nodes, key=lambda node: node.id)),
        tuple(sorted(shards, key=lambda shard: (shard.collection, shard.shard))),
        message.router_used_bytes,
        message.router_limit_bytes,
    )


def _replica(replica: cluster_service_pb2.ReplicaState) -> models.ReplicaState:
    status = _word(cluster_service_pb2.ReplicaStatus, replica.status)
    return models.ReplicaState(
        node=replica.node,
        primary=replica.primary,
        status=cast(models.ReplicaStatus, status),
        message=replica.message,
        applied_seqno=replica.applied_seqno,
        points=replica.points,
        indexed_points=replica.indexed_points,
        buffered_points=replica.buffered_points,
        tombstones=replica.tombstones,
        segments=replica.segments,
        codebook_version=replica.codebook_version,
        disk_bytes=replica.disk_bytes,
        index_bytes=replica.index_bytes,
        memory_bytes=replica.memory_bytes,
    )


def coverage(message: types_pb2.Coverage) -> models.Coverage:
    """Reads which shards an answer speaks for."""
    if not message.missing:
        return models.Coverage(message.shards_total, message.shards_answered)
    missing = tuple(models.MissingShard(gap.shard, gap.reason, gap.message) for gap in message.missing)
    return models.Coverage(message.shards_total, message.shards_answered, missing)


def _progress(message: types_pb2.IndexProgress) -> models.IndexProgress:
    codebook = message.codebook
    return models.IndexProgress(
        message.points,
        message.indexed_points,
        message.buffered_points,
        message.segments,
        message.tombstones,
        models.Codebook(codebook.version, codebook.checksum, codebook.nlist, codebook.m, codebook.trained_points),
        message.settled,
    )


def _word(enum: Any, number: int) -> str:
    """`METRIC_L2` → `l2`: the name of an enum's value without the enum's own."""
    if number not in enum.values():
        return f"unknown-{number}"  # a newer server's
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper() + "_"
    return str(enum.Name(number)).removeprefix(prefix).lower()
