"""Backups of real clusters: what was there is there again, elsewhere; half of one never looks like a whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import vectorfleet
from vectorfleet.local import LocalCluster


def test_a_collection_is_restored_under_another_name(
    cluster: LocalCluster, client: vectorfleet.Client, new_name: Callable[[], str], rng: np.random.Generator
) -> None:
    name, copy = new_name(), new_name()
    client.create_collection(name, dim=8, shards=3)
    vectors = rng.standard_normal((500, 8)).astype(np.float32)
    client.upsert(name, ids=range(500), vectors=vectors, payloads=[{"n": n} for n in range(500)])
    client.delete(name, ids=range(0, 500, 5))
    destination = str(cluster.data / "backups" / name)
    made = client.create_backup(destination, collections=[name])
    client.upsert(name, ids=["later"], vectors=[np.zeros(8)])
    restored = client.restore_backup(destination, collections={name: copy})
    assert restored == vectorfleet.RestoredBackup(made.id, (copy,))
    assert client.count(copy) == 400
