"""What a sound request looks like to the clusters that are fuzzed, and what is nearly one.

The words for `Requests`: values by the name of a field, and what makes the fields of a message fit together.
"""

from __future__ import annotations

import random
from typing import Any, Final

from tests.cluster.requests import Hints, floats, is_map
from vectorfleet import limits

DIM: Final = 4
STILL: Final = "still"
IDS: Final = ("a", "b", "c", "d", "é", "x" * 256)
ROWS: Final = (floats(1, 2, 3, 4), floats(0.5, 0, 0, 0), floats(-1, 1e-30, 5, 2))
PAYLOADS: Final = (b"", b"{}", b'{"n": 1}')


def hints(name: str, uid: str, address: str, term: int, place: str, key: str) -> Hints:
    """The values that mean something.

    Args:
        name: of the collection that requests are about.
        uid: its uid.
        address: of the node that holds its one shard.
        term: of that shard.
        place: where backups may lie.
        key: id of an API key that may be revoked.
    """
    long, junk = "x" * (limits.ID_BYTES_MAX + 1), ["", "nowhere", "../x", "x" * 129]
    short, infinite = floats(1, 2, 3), floats(3e38, 3e38, 0, 0)
    return {
        "collection": ([name], junk),
        "name": (["nowhere", "made-by-a-request"], [*junk, f"{name} "]),
        "GetCollectionRequest.name": ([name, "nowhere"], [*junk, f"{name} "]),
        "collection_uid": ([uid], junk),
        "id": (IDS, ["", long]),
        "ids": (IDS, ["", long]),
        "after_id": (["", *IDS], [long]),
        "vector": (ROWS, [short, infinite, ROWS[0] * 2]),
        "vectors": (ROWS, [short, infinite, ROWS[0] * 2]),
        "payload": (PAYLOADS, [b"[]", b"{"]),
        # A node takes payloads as bytes: whether they are JSON is the router's to check.
        "UpsertBatch.payloads": ([*PAYLOADS, b"{", b"[]"], [b"x" * (limits.PAYLOAD_BYTES_MAX + 1)]),
        "payloads": (PAYLOADS, [b"[]", b"{"]),
        "values": ([0.5, 1.0, -3.5], [float("nan"), 3e38]),
        "text": (["a text"], [""]),
        "epoch": ([0, 1], [2]),
        "term": ([term], [0, term + 1]),
        "shard": ([0], [1]),
        "query_count": ([1], [2]),
        "k": ([1, 3, 10], [limits.K_MAX]),
        "nprobe": ([0, 1, 8], [limits.NPROBE_MAX]),
        "oversample": ([0.0, 1.0, 10.0], [0.5, limits.OVERSAMPLE_MAX]),
        "min_coverage": ([0.0, 1.0], [0.5]),
        "limit": ([1, 3, 10], [limits.SCROLL_PAGE_MAX]),
        "page_size": ([0, 1, 10], [limits.SCROLL_PAGE_MAX]),
        "seqno": ([0, 1], [2]),
        "min_seqno": ([0, 1], [2]),
        "timeout_ms": ([0, 1000], [1]),
        "address": ([address], ["", "nonsense", "127.0.0.1:1"]),
        "destination": ([place], ["", "/etc", f"{place}/../../x", "relative", "memory://x/y", "s3://127.0.0.1/x"]),
        "source": ([place], ["", "/etc", f"{place}/../../x", "file:///etc"]),
        "backup": ([""], ["nowhere", "../x"]),
        "collections": ([STILL], junk),
        "RestoreTarget.collection": ([STILL], junk),
        "RestoreTarget.name": (["made-by-a-request"], [STILL, *junk]),
        "page_token": ([""], ["?"]),
        "consistency_token": ([b""], [b"?"]),
        "dim": ([DIM], [1, limits.DIM_MAX]),
        "shards": ([1], [2, limits.SHARDS_MAX + 1]),
        "replicas": ([0, 1], [2]),
        "m": ([0, 2], [3]),
        "nlist": ([0, 2], [64]),
        "version": ([1], [2]),
        "train_points": ([0, 256], [255]),
        "RevokeKeyRequest.id": ([key], ["", "0" * 16, long]),
        "scopes": (["read:still", "write:made-*", "admin:*"], ["", "read", "own:still", f"read:{long}"]),
        "description": (["a key"], ["two\nlines", long]),
        "seconds": ([4_102_444_800], [0, -1, 2**62]),
        "nanos": ([0], [-1, 10**9]),
        "calls_per_second": ([0.0, 5.0], [-1.0, float("nan"), float("inf")]),
        "points_per_second": ([0.0, 5.0], [-1.0]),
        "points_per_day": ([0.0, 1e6], [-1.0]),
        "embedding_model": ([""], ["/no/such/model"]),
    }


def mend(chance: random.Random, message: Any) -> None:
    """Makes the parts of a message fit together, as far as a reader of the contract would."""
    fields = message.DESCRIPTOR.fields_by_name
    if "packed" in fields and "points" in fields:
        message.ClearField(chance.choice(("packed", "points")))
    if "ids" in fields:
        ids = list(message.ids) or [chance.choice(IDS)]
        if chance.random() < 0.8:
            ids = list(dict.fromkeys(ids))
        message.ids[:] = ids
        if "vectors" in fields:
            message.vectors = b"".join(chance.choice(ROWS) for _ in ids)
        if "payloads" in fields:
            message.payloads[:] = [chance.choice(PAYLOADS) for _ in ids] if chance.random() < 0.5 else []
    if "query_count" in fields:
        message.query_count = chance.choice((1, 2, 3))
        message.vectors = b"".join(chance.choice(ROWS) for _ in range(message.query_count))
        del message.targets[1:]
    for described, value in message.ListFields():
        if described.message_type is not None and not is_map(described):
            for part in value if described.is_repeated else (value,):
                mend(chance, part)
