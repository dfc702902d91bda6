"""How far a collection's index has come, summed over what its nodes said: pure."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from router.assignment import training_due
from router.describing import Descriptions, missing, replica_on, why_not_serving
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.v1 import types_pb2


def collection(record: CollectionRecord) -> types_pb2.Collection:
    """A collection as the shard map knows it, without progress."""
    created = Timestamp()
    created.FromMilliseconds(record.create_time_ms)
    return types_pb2.Collection(
        spec=types_pb2.CollectionSpec(
            name=record.name,
            dim=record.dim,
            metric=record.metric,  # type: ignore[arg-type]  # an enum's number
            shards=len(record.shards),
            replicas=record.replicas,
            index=types_pb2.IndexSpec(
                kind=record.index.kind,  # type: ignore[arg-type]
                nlist=record.index.nlist,
                m=record.index.m,
                train_points=record.index.train_points,
            ),
            embedding_model=record.embedding_model,
        ),
        uid=record.uid,
        create_time=created,
    )


def collection_with_progress(record: CollectionRecord, descriptions: Descriptions) -> types_pb2.Collection:
    """The same with its progress, and with the shards that the sums cover."""
    described = collection(record)
    progress = described.progress
    coverage = described.coverage
    coverage.shards_total = len(record.shards)
    version = 0
    if record.codebook is not None:
        book = record.codebook
        version = book.version
        progress.codebook.CopyFrom(
            types_pb2.CodebookStatus(
                version=version,
                checksum=book.checksum,
                nlist=book.nlist,
                m=book.m,
                trained_points=book.trained_points,
            )
        )
    settled, seqnos = True, 0
    for shard in record.shards:
        error = why_not_serving(descriptions, record, shard)
        replica = replica_on(descriptions, shard.primary, record.uid, shard.shard)
        if error is not None or replica is None:
            coverage.missing.append(missing(shard.shard, error))  # type: ignore[arg-type]  # no error: a replica
            continue
        coverage.shards_answered += 1
        progress.points += replica.state.points
        seqnos += replica.state.applied_seqno
        progress.indexed_points += replica.state.indexed_points
        progress.buffered_points += replica.state.buffered_points
        progress.segments += replica.state.segments
        progress.tombstones += replica.state.tombstones
        current = replica.state.codebook_version == version
        settled &= replica.settled and current and replica.state.buffered_points == 0
    complete = coverage.shards_answered == coverage.shards_total
    due = training_due(record, progress.points, seqnos, quiet=settled)
    progress.settled = settled and complete and not due
    return described
