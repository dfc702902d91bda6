"""Keys of etcd's become a cluster state; what cannot be read costs nothing else."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from vectorfleet.cluster.etcd_client import Entry
from vectorfleet.cluster.etcd_records import Keys, after, loaded
from vectorfleet.cluster.key_record import KeyRecord, Limits
from vectorfleet.cluster.shard_map import (
    ClusterState,
    CollectionRecord,
    NodeInfo,
    ShardAssignment,
    node_to_json,
)

KEYS = Keys("/v/")
NODE = NodeInfo("n1", "10.0.0.1:7000", "1.0")
RECORD = CollectionRecord("films", "u1", 8, 1, (ShardAssignment(0, 0, 2**64 - 1, 1, "n1", ("n1",), ("n1",)),))


KEY = KeyRecord("k1", "0" * 64, ("read:films", "write:a*"), "the loader", 5, 6, Limits(1.5, 2.0, 3.0))


def put(key: str, value: bytes, revision: int) -> Entry:
    return Entry(key, value, revision)


def gone(key: str, revision: int) -> Entry:
    return Entry(key, None, revision)


def full() -> ClusterState:
    entries = [
        put("/v/nodes/n1", node_to_json(NODE), 3),
        put("/v/collections/films", RECORD.to_json(), 4),
        put("/v/deleted/u0", b"", 5),
        put("/v/controller", b"r1", 6),
        put("/v/keys/k1", KEY.to_json(), 7),
    ]
    return loaded(KEYS, ClusterState(), 9, entries)


def test_a_load_gives_the_whole_state() -> None:
    state = full()
    assert state.epoch == 9
    assert dict(state.nodes) == {"n1": NODE}
    assert state.collections["films"].mod_revision == 4
    assert state.collections["films"].shards == RECORD.shards
    assert state.deleted_uids == {"u0"}
    assert state.controller == "r1"
    assert dict(state.keys) == {"k1": KEY.at(7)}


def test_a_key_that_cannot_be_read_opens_nothing() -> None:
    for value in (b"", b"{}", b"7", KEY.to_json().replace(b'"format_version":1', b'"format_version":2'), b"\xff"):
        assert not loaded(KEYS, ClusterState(), 9, [put("/v/keys/k1", value, 8)]).keys
    assert not loaded(KEYS, ClusterState(), 9, [put("/v/keys/k2", KEY.to_json(), 8)]).keys, "it is of another"


def test_a_key_that_was_revoked_while_nobody_watched_is_forgotten() -> None:
    rest = [put("/v/collections/films", RECORD.to_json(), 4)]
    assert not loaded(KEYS, full(), 12, rest).keys
    assert not after(KEYS, full(), 10, [gone("/v/keys/k1", 10)]).keys


def test_a_load_forgets_what_is_gone() -> None:
    assert loaded(KEYS, full(), 12, []) == ClusterState(epoch=12)


def test_changes_follow_one_another_and_leave_the_older_state_alone() -> None:
    before = full()
    changes = [
        gone("/v/nodes/n1", 10),
        gone("/v/collections/films", 11),
        put("/v/deleted/u1", b"", 11),
        gone("/v/controller", 12),
        gone("/v/keys/k1", 12),
    ]
    state = after(KEYS, before, 12, changes)
    assert state == ClusterState(12, deleted_uids=frozenset({"u0", "u1"}))
    assert before == full()
    assert isinstance(state.nodes, MappingProxyType)


UNREADABLE = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"{",
    b"7",
    json.dumps({"format_version": 2, "name": "films"}).encode(),
    json.dumps({"format_version": 1}).encode(),
    json.dumps({"format_version": 1, "name": "films", "shards": 7}).encode(),
    json.dumps({"format_version": 1, "name": "films", "shards": [{}], "index": []}).encode(),
    RECORD.to_json().replace(b'"films"', b'"other"'),
]


@pytest.mark.parametrize("value", UNREADABLE)
def test_an_unreadable_collection_is_passed_over_and_the_known_one_stays(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    changes = [put("/v/collections/films", value, 10), put("/v/nodes/n2", node_to_json(NodeInfo("n2", "b:1")), 10)]
    state = after(KEYS, full(), 10, changes)
    assert state.collections["films"].mod_revision == 4
    assert set(state.nodes) == {"n1", "n2"}
    assert "/v/collections/films" in caplog.text
    assert "films" not in after(KEYS, ClusterState(), 10, changes).collections
    reloaded = loaded(KEYS, full(), 10, changes)
    assert reloaded.collections["films"].mod_revision == 4
    assert set(reloaded.nodes) == {"n2"}


@pytest.mark.parametrize("value", [b"", b"{}", b'{"format_version": 1}', b'{"format_version": 1, "id": "n2"}'])
def test_an_unreadable_node_is_passed_over(value: bytes) -> None:
    assert set(after(KEYS, full(), 10, [put("/v/nodes/n2", value, 10)]).nodes) == {"n1"}


def test_keys_of_other_names_are_nobodys_business() -> None:
    changes = [put("/v/future/thing", b"x", 10), put("/v/other", b"x", 10), gone("/v/future/thing", 11)]
    state = after(KEYS, full(), 11, changes)
    assert (dict(state.collections), dict(state.nodes)) == (dict(full().collections), dict(full().nodes))


def test_a_prefix_ends_in_a_slash() -> None:
    with pytest.raises(ValueError, match="end in '/'"):
        Keys("/vectorfleet")
