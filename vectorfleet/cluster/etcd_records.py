"""The keys that etcd holds for us, and how they add up to a cluster state. Pure.

Below the prefix: `nodes/<id>` (under the node's lease), `collections/<name>`, `deleted/<uid>` (empty; a collection that is gone
for good), `keys/<id>` (API keys, hashed), `controller` (under the leader's lease). A record that this release cannot read is
logged and passed over: what was known before under its key stays. Keys of other names are nobody's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from vectorfleet.cluster.etcd_client import Entry
from vectorfleet.cluster.key_record import KeyRecord
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo, node_from_json

_log = logging.getLogger(__name__)


class Keys:
    """Names of keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        """Raises `ValueError` where the prefix does not end in "/": another cluster's could begin with it."""
        if not prefix.endswith("/"):
            raise ValueError(f"the prefix in etcd must end in '/': {prefix!r}")
        self.prefix = prefix
        self.controller = f"{prefix}controller"

    def node(self, node_id: str) -> str:
        """Of a node."""
        return f"{self.prefix}nodes/{node_id}"

    def collection(self, name: str) -> str:
        """Of a collection."""
        return f"{self.prefix}collections/{name}"

    def deleted(self, uid: str) -> str:
        """Of a collection that is gone for good."""
        return f"{self.prefix}deleted/{uid}"

    def key(self, key_id: str) -> str:
        """Of an API key."""
        return f"{self.prefix}keys/{key_id}"

    def split(self, key: str) -> tuple[str, str]:
        """Splits a key into its folder and its name."""
        folder, _, name = key.removeprefix(self.prefix).partition("/")
        return folder, name


def loaded(keys: Keys, known: ClusterState, revision: int, entries: Iterable[Entry]) -> ClusterState:
    """The state after all keys were read at one revision; of `known` only what cannot be read now is kept."""
    entries = list(entries)
    present = {keys.split(entry.key) for entry in entries}
    base = ClusterState(
        nodes={name: node for name, node in known.nodes.items() if ("nodes", name) in present},
        collections={name: one for name, one in known.collections.items() if ("collections", name) in present},
        keys={name: one for name, one in known.keys.items() if ("keys", name) in present},
    )
    return after(keys, base, revision, entries)


def after(keys: Keys, state: ClusterState, revision: int, changes: Iterable[Entry]) -> ClusterState:
    """The state at `revision`, after the changes that came since."""
    nodes, collections, api_keys = dict(state.nodes), dict(state.collections), dict(state.keys)
    deleted = set(state.deleted_uids)
    folders: dict[str, dict[str, Any]] = {"nodes": nodes, "collections": collections, "keys": api_keys}
    controller = state.controller
    for change in changes:
        folder, name = keys.split(change.key)
        if change.key == keys.controller:
            controller = (change.value or b"").decode(errors="replace")
        elif folder == "deleted":
            (deleted.discard if change.value is None else deleted.add)(name)
        elif folder in folders and change.value is None:
            folders[folder].pop(name, None)
        elif folder in folders:
            try:
                folders[folder][name] = _read(folder, name, change)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                _log.error("%s at revision %d is passed over: %s", change.key, change.mod_revision, error)
    return replace(
        state,
        epoch=revision,
        nodes=MappingProxyType(nodes),
        collections=MappingProxyType(collections),
        deleted_uids=frozenset(deleted),
        controller=controller,
        keys=MappingProxyType(api_keys),
    )


def _read(folder: str, name: str, change: Entry) -> NodeInfo | CollectionRecord | KeyRecord:
    value = change.value or b""
    record: NodeInfo | CollectionRecord | KeyRecord
    if folder == "nodes":
        record = node_from_json(value)
    elif folder == "keys":
        record = KeyRecord.from_json(value, change.mod_revision)
    else:
        record = CollectionRecord.from_json(value, change.mod_revision)
    found = record.name if isinstance(record, CollectionRecord) else record.id
    if found != name:
        raise ValueError(f"the record is of {found!r}")
    return record
