"""How a collection is cut into shards never shows in an exact answer: not in the ids, not in one bit of a score."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

import vectorfleet

SHARDS = (1, 2, 4, 8)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_the_same_answers_for_any_number_of_shards(
    client: vectorfleet.Client, new_name: Callable[[], str], rng: np.random.Generator, metric: str
) -> None:
    count, dim = 900, 19
    # Small whole numbers make many equal scores: ties within and across shards.
    vectors = rng.integers(-2, 3, (count, dim)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    vectors[500:] += rng.standard_normal((400, dim)).astype(np.float32)
    ids = [f"{number:x}" for number in range(count)]
    queries = np.concatenate((vectors[:20], rng.standard_normal((20, dim)).astype(np.float32)))

    def answers(name: str) -> tuple[np.ndarray, np.ndarray]:
        found = client.search(name, vectors=queries, k=25, exact=True)
        assert found.coverage.complete
        return found.ids, found.scores

    names = {shards: new_name() for shards in SHARDS}
    for shards, name in names.items():
        created = client.create_collection(name, dim=dim, metric=metric, shards=shards)
        assert created.shards == shards
        client.upsert(name, ids=ids, vectors=vectors)
    first = answers(names[1])
    for shards in SHARDS[1:]:
        _same(answers(names[shards]), first, f"{shards} shards, buffered")
    for shards, name in names.items():
        client.wait_indexed(name, timeout=60)
        _same(answers(name), first, f"{shards} shards, sealed")


def _same(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray], what: str) -> None:
    assert found[0].tolist() == wanted[0].tolist(), what
    np.testing.assert_array_equal(found[1], wanted[1], err_msg=what)


def test_shards_share_the_points_and_the_nodes(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=1, shards=4)
    client.upsert(name, ids=list(range(2_000)), vectors=np.arange(2_000, dtype=np.float32).reshape(-1, 1))
    shards = [shard for shard in client.cluster().shards if shard.collection == name]
    assert [shard.shard for shard in shards] == [0, 1, 2, 3]
    held = [replica for shard in shards for replica in shard.replicas]
    assert sum(replica.points for replica in held) == 2_000
    assert min(replica.points for replica in held) > 400, "the hash spreads points evenly"
    per_node = [replica.node for replica in held]
    assert sorted(per_node.count(node) for node in set(per_node)) == [2, 2]
    assert shards[0].hash_first == 0
    assert shards[-1].hash_last == 2**64 - 1
    for left, right in itertools.pairwise(shards):
        assert right.hash_first == left.hash_last + 1
