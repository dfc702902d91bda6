"""Filters through a real router and real shard servers, against plain Python, in every state that points can be in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vectorfleet
from tests import oracle
from tests.cluster.conftest import PATIENCE_S, StartCluster
from tests.cluster.test_cli import told
from vectorfleet.local import LocalCluster

POINTS, DIM, K = 6000, 16, 10
LANGUAGES = ("en", "de", "fr", "eo")

Points = dict[str, tuple[NDArray[np.float32], dict[str, Any] | None]]


def make_points(first: int, last: int, seed: int) -> Points:
    """Points in four clumps, one a language: a filter on one language excludes most of what is near to another."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(99).standard_normal((len(LANGUAGES), DIM))
    points: Points = {}
    for number in range(first, last):
        clump = number % len(LANGUAGES)
        vector = (centres[clump] + rng.standard_normal(DIM)).astype(np.float32)
        payload = {
            "lang": LANGUAGES[clump],
            "price": number / 8 if number % 5 else str(number),
            "tags": ["odd" if number % 2 else "even", number % 3],
            "author": {"name": f"a{number % 7}"},
        }
        points[f"p{number}"] = vector, None if number % 11 == 0 else payload
    return points


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"lang": "en"}, lambda p: p.get("lang") == "en"),
    ({"lang": {"$ne": "en"}}, lambda p: p.get("lang") != "en"),
    ({"price": {"$gte": 2, "$lt": 7.5}}, lambda p: isinstance(p.get("price"), float) and 2 <= p["price"] < 7.5),
    ({"price": {"$in": ["5", 0.125, "none"]}}, lambda p: p.get("price") in ("5", 0.125)),
    ({"tags": "odd", "author.name": "a3"}, lambda p: "odd" in p.get("tags", ()) and p["author"]["name"] == "a3"),
    ({"$or": [{"tags": 2}, {"lang": {"$exists": False}}]}, lambda p: 2 in p.get("tags", ()) or "lang" not in p),
    ({"lang": "nobody speaks it"}, lambda p: False),
]  # fmt: skip


def check(client: vectorfleet.Client, name: str, points: Points, queries: NDArray[np.float32]) -> None:
    """Every filter finds k points where k pass, and nothing else; with `exact` and for few the nearest of all."""
    for wanted, passes in FILTERS:
        passing = {key: vector for key, (vector, payload) in points.items() if passes(payload or {})}
        for exact in (True, False):
            result = client.search(name, vectors=queries, k=K, filter=wanted, exact=exact, with_payload=True)
            assert result.coverage.complete
            assert result.matching == len(passing), wanted
            for query, hits in zip(queries, result.hits, strict=True):
                assert all(hit.payload == points[hit.id][1] for hit in hits)
                assert len(hits) == min(K, len(passing))
                oracle.check_answer("l2", query, passing, hits, K, exact=exact)
        if passing:
            assert oracle.recall("l2", queries, passing, result.hits, min(K, len(passing))) > 0.9


def write(client: vectorfleet.Client, name: str, points: Mapping[str, Any]) -> None:
    vectors = np.stack([vector for vector, _ in points.values()])
    client.upsert(name, ids=list(points), vectors=vectors, payloads=[payload for _, payload in points.values()])


@pytest.fixture
def queries() -> NDArray[np.float32]:
    return np.stack([vector for vector, _ in make_points(0, 8, seed=5).values()])


def test_filters_hold_in_every_state(start_cluster: StartCluster, tmp_path: Any, queries: NDArray[np.float32]) -> None:
    cluster = start_cluster(data=tmp_path / "data")
    points = make_points(0, 500, seed=1)
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as client:
        client.create_collection("c", dim=DIM, shards=2, index=vectorfleet.IndexOptions(train_points=1000))
        write(client, "c", points)
        check(client, "c", points, queries)  # in the buffer, as far as nothing was sealed yet

        more = make_points(500, POINTS, seed=2)
        write(client, "c", more)
        points |= more
        client.wait_indexed("c", timeout=PATIENCE_S)
        check(client, "c", points, queries)  # sealed and encoded

        moved = make_points(1000, 2000, seed=3)  # other vectors, and payloads of other points
        changed = {key: (vector, points[f"p{number}"][1]) for number, (key, (vector, _)) in enumerate(moved.items())}
        write(client, "c", changed)
        points |= changed
        gone = [f"p{number}" for number in range(2000, 3000)]
        client.delete("c", ids=gone)
        for key in gone:
            del points[key]
        check(client, "c", points, queries)  # overwritten in the buffer, dead in the segments
    cluster.stop()

    again = start_cluster(data=tmp_path / "data")
    with vectorfleet.Client(again.address, timeout=PATIENCE_S) as client:
        check(client, "c", points, queries)
        client.wait_indexed("c", timeout=PATIENCE_S)
        check(client, "c", points, queries)  # compacted


def test_both_clients_and_the_command_line_filter_alike(
    cluster: LocalCluster, client: vectorfleet.Client, name: str, queries: NDArray[np.float32]
) -> None:
    client.create_collection(name, dim=DIM, shards=2)
    write(client, name, make_points(0, 200, seed=1))
    wanted = {"author.name": {"$in": ["a1", "a2"]}, "tags": "odd"}
    expected = client.search(name, vectors=queries[:1], k=3, filter=wanted)
    assert 3 < (expected.matching or 0) < 200

    query = json.dumps(queries[0].tolist())
    answer = told(
        "search", name, "--address", cluster.address, "-k", "3", "--vector", query, "--filter", json.dumps(wanted)
    )
    assert [hit["id"] for hit in answer["hits"][0]] == expected.ids[0].tolist()
    assert answer["matching"] == expected.matching


async def test_the_asyncio_client_filters(
    aclient: vectorfleet.AsyncClient, client: vectorfleet.Client, name: str, queries: NDArray[np.float32]
) -> None:
    client.create_collection(name, dim=DIM, shards=2)
    write(client, name, make_points(0, 200, seed=1))
    wanted: Sequence[dict[str, Any]] = [{"lang": "en"}, {"lang": {"$ne": "en"}}]
    for one in wanted:
        found = await aclient.search(name, vectors=queries, k=5, filter=one)
        same = client.search(name, vectors=queries, k=5, filter=one)
        assert found.ids.tolist() == same.ids.tolist()
        assert found.matching == same.matching
