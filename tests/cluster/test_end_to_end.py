"""The main job through every layer: points go in over gRPC, and all that comes back agrees with brute force."""

from __future__ import annotations

import numpy as np
import pytest

import vectorfleet
from tests import oracle

METRICS = ("l2", "dot", "cosine")
K = 10


def made_up(rng: np.random.Generator, count: int, dim: int, lengths: float = 1.0) -> np.ndarray:
    """Vectors of different lengths (the deviation of their logarithm), two of them equal."""
    spread = rng.lognormal(0, lengths, (count, 1)).astype(np.float32)
    vectors = rng.standard_normal((count, dim)).astype(np.float32) * spread
    vectors[count // 2] = vectors[0]
    return vectors


def as_points(ids: list[str], vectors: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(ids, vectors, strict=True))


def check(
    client: vectorfleet.Client, name: str, metric: str, queries: np.ndarray, points: dict[str, np.ndarray]
) -> None:
    """Exact and default searches, counting and walking agree with the points that are there."""
    for exact in (True, False):
        found = client.search(name, vectors=queries, k=K, exact=exact)
        assert found.coverage.complete
        for query, hits in zip(queries, found.hits, strict=True):
            oracle.check_answer(metric, query, points, hits, K)
    assert client.count(name) == len(points)
    walked = [point.id for point in client.scroll(name, page_size=37)]
    assert walked == sorted(points, key=str.encode)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "count"), [(1, 150), (2, 200), (3, 200), (7, 200), (127, 150), (1024, 60), (4096, 40)])
def test_write_search_overwrite_delete(
    client: vectorfleet.Client, name: str, rng: np.random.Generator, metric: str, dim: int, count: int
) -> None:
    created = client.create_collection(name, dim=dim, metric=metric, shards=3)
    assert (created.name, created.dim, created.metric) == (name, dim, metric)
    vectors = made_up(rng, count, dim)
    ids = [f"é{number}" if number % 3 else f"doc/{number:05d}" for number in range(count)]
    payloads = [{"number": number, "of": ["nested", None, 1.5]} if number % 2 else None for number in range(count)]
    queries = np.concatenate((vectors[:2], made_up(rng, 4, dim)))

    written = client.upsert(name, ids=ids, vectors=vectors, payloads=payloads)
    assert written.upserted == count
    points = as_points(ids, vectors)
    check(client, name, metric, queries, points)

    got = client.get(name, ids=[ids[5], "nobody", ids[3], ids[4]], with_vector=True)
    assert [point.id for point in got] == [ids[5], ids[3], ids[4]], "in the order asked, absent ones left out"
    for point, number in zip(got, (5, 3, 4), strict=True):
        assert point.vector is not None
        assert point.vector.tobytes() == vectors[number].tobytes(), "a vector comes back bit by bit"
        assert point.payload == payloads[number]

    third = count // 3
    deleted, overwritten = ids[:third], ids[third : 2 * third]
    renewed = made_up(rng, third, dim)
    assert client.delete(name, ids=[*deleted, "nobody"]).deleted == third
    assert client.upsert(name, ids=overwritten, vectors=renewed).upserted == third
    points = {name_: vector for name_, vector in points.items() if name_ not in set(deleted)}
    points |= as_points(overwritten, renewed)
    check(client, name, metric, queries, points)

    before = {point.id: point.version for point in client.get(name, ids=ids[third:])}
    assert client.delete(name, ids=deleted).deleted == 0, "they are gone already"
    client.upsert(name, ids=overwritten[:1], vectors=renewed[:1], payloads=[{"again": True}])
    (again,) = client.get(name, ids=overwritten[:1])
    assert again.payload == {"again": True}
    assert again.version > before[overwritten[0]] > 0


@pytest.mark.parametrize("metric", METRICS)
def test_sealed_points_answer_as_buffered_ones(
    client: vectorfleet.Client, name: str, rng: np.random.Generator, metric: str
) -> None:
    """The same checks on segments, on segments with dead rows, and with a codebook."""
    client.create_collection(name, dim=24, metric=metric, shards=2, index=vectorfleet.IndexOptions(train_points=1_000))
    count = 3_000
    vectors = made_up(rng, count, 24, 0.2)
    ids = [f"{number}" for number in range(count)]
    queries = made_up(rng, 8, 24, 0.2)
    points = as_points(ids, vectors)
    client.upsert(name, ids=ids, vectors=vectors)
    settled = client.wait_indexed(name, timeout=60)
    assert settled.progress.settled
    assert settled.progress.codebook.version >= 1
    assert (settled.progress.points, settled.progress.indexed_points, settled.progress.buffered_points) == (
        count,
        count,
        0,
    )

    def check_now() -> None:
        found = client.search(name, vectors=queries, k=K, exact=True, with_vector=True, with_payload=True)
        for query, hits in zip(queries, found.hits, strict=True):
            oracle.check_answer(metric, query, points, hits, K)
            for hit in hits:
                assert hit.vector.tobytes() == points[hit.id].tobytes()
        usual = client.search(name, vectors=queries, k=K)
        for query, hits in zip(queries, usual.hits, strict=True):
            oracle.check_answer(metric, query, points, hits, K, exact=False)
        assert oracle.recall(metric, queries, points, usual.hits, K) >= 0.8, "random vectors are the hardest there are"
        assert client.count(name) == len(points)

    check_now()
    client.delete(name, ids=ids[:1000])
    renewed = made_up(rng, 1000, 24, 0.2)
    client.upsert(name, ids=ids[1000:2000], vectors=renewed)
    points = as_points(ids[1000:2000], renewed) | as_points(ids[2000:], vectors[2000:])
    check_now()
    assert client.wait_indexed(name, timeout=60).progress.points == 2000
    check_now()


def test_ids_and_results_in_all_their_forms(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=2, metric="l2", shards=2)
    client.upsert(name, ids=[1, "1a", "日本", "x" * 256], vectors=[[0, 0], [1, 0], [2, 0], [3, 0]])
    found = client.search(name, vectors=[0, 0], k=6)
    assert [hit.id for hit in found.hits[0]] == ["1", "1a", "日本", "x" * 256]
    assert found.ids.shape == found.scores.shape == (1, 6)
    assert found.ids[0].tolist() == ["1", "1a", "日本", "x" * 256, "", ""]
    assert found.scores[0, :4].tolist() == [0, 1, 2, 3]
    assert np.isnan(found.scores[0, 4:]).all()
    assert found.scores.dtype == np.float32
    assert client.search(name, vectors=[[0, 0], [3, 0]], k=1).ids.tolist() == [["1"], ["x" * 256]]


def test_the_last_of_an_id_wins_within_a_call(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=1, metric="l2", shards=2)
    assert client.upsert(name, ids=["a", "b", "a"], vectors=[[1], [2], [3]]).upserted == 2
    assert client.search(name, vectors=[[3]], k=5).ids[0].tolist()[:2] == ["a", "b"]
    assert client.count(name) == 2


def test_an_empty_collection_answers(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=3, shards=2)
    found = client.search(name, vectors=[[1, 2, 3]], k=4)
    assert found.hits == [[]]
    assert found.coverage.complete
    assert client.count(name) == 0
    assert list(client.scroll(name)) == []
    assert client.get(name, ids=["a"]) == []
    assert client.wait_indexed(name, timeout=30).progress.settled


def test_collections_come_and_go(client: vectorfleet.Client, new_name: object) -> None:
    names = sorted(new_name() for _ in range(3))  # type: ignore[operator]
    for position, one in enumerate(names):
        client.create_collection(one, dim=position + 1, metric=METRICS[position])
    listed = {one.name: one for one in client.list_collections()}
    assert set(names) <= listed.keys()
    assert [listed[one].metric for one in names] == list(METRICS)
    uid = client.get_collection(names[0]).uid
    client.upsert(names[0], ids=["a"], vectors=[[1]])
    client.delete_collection(names[0])
    with pytest.raises(vectorfleet.NotFound):
        client.get_collection(names[0])
    again = client.create_collection(names[0], dim=5)
    assert again.uid != uid
    assert client.count(names[0]) == 0, "a new collection of an old name is empty"


def test_a_write_is_seen_by_the_search_that_carries_its_token(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=2, shards=2)
    for number in range(20):
        written = client.upsert(name, ids=[number], vectors=[[number, 0]])
        found = client.search(name, vectors=[[number, 0]], k=1, consistency_token=written.consistency_token)
        assert found.ids[0, 0] == str(number)
        gone = client.delete(name, ids=[str(number)])
        found = client.search(name, vectors=[[number, 0]], k=1, consistency_token=gone.consistency_token)
        assert found.hits == [[]]


async def test_the_async_client_does_the_same(aclient: vectorfleet.AsyncClient, name: str) -> None:
    await aclient.create_collection(name, dim=2, shards=2)
    ids = [f"{number:04d}" for number in range(500)]
    vectors = np.arange(1000, dtype=np.float32).reshape(-1, 2)
    assert (await aclient.upsert(name, ids=ids, vectors=vectors)).upserted == 500
    found = await aclient.search(name, vectors=vectors[[7, 400]], k=1)
    assert found.ids.tolist() == [["0007"], ["0400"]]
    assert [point.id async for point in aclient.scroll(name, page_size=99)] == ids
    assert (await aclient.delete(name, ids=ids[:5])).deleted == 5
    assert await aclient.count(name) == 495
    assert [point.id for point in await aclient.get(name, ids=ids[4:6])] == ids[5:6]
