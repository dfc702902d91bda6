"""Consistency tokens: what a write hands to its caller, and what a search makes of it.

A token is an `internal.v1.ConsistencyToken`, opaque to clients: the collection's uid and, for each shard that was written, the
last seqno. A search that carries it is answered only by replicas that have applied those writes.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from router.validation import refuse
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.internal.v1 import token_pb2

_FIELD = "consistency_token"


def issue(uid: str, seqnos: Mapping[int, int]) -> bytes:
    """Makes the token of a write: shard → its last seqno."""
    shards = [token_pb2.ShardSeqno(shard=shard, seqno=seqno) for shard, seqno in sorted(seqnos.items())]
    return token_pb2.ConsistencyToken(collection_uid=uid, shards=shards).SerializeToString()


def read(token: bytes, record: CollectionRecord) -> dict[int, int]:
    """Returns shard → seqno; nothing for no token.

    Raises:
        InvalidRequest: this is no token, or another collection's.
    """
    if not token:
        return {}
    try:
        content = token_pb2.ConsistencyToken.FromString(token)
    except DecodeError:
        refuse(_FIELD, "this is no consistency token")
    if not content.collection_uid:
        refuse(_FIELD, "this is no consistency token")
    if content.collection_uid != record.uid:
        refuse(_FIELD, f"the token is of another collection than {record.name}, or of an earlier one of that name")
    numbers = {shard.shard for shard in record.shards}
    if any(entry.shard not in numbers for entry in content.shards):
        refuse(_FIELD, f"the token names a shard that {record.name} does not have")
    return {entry.shard: entry.seqno for entry in content.shards}
