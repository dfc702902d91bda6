"""Training, sealing, encoding and merging go on behind reads and writes, and no instant of it shows in an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import vectorfleet
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

DIM = 16


class Acknowledged:
    """What the server has acknowledged: id → vector. A searcher reads it while a writer goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: dict[str, np.ndarray] = {}

    def put(self, ids: list[str], vectors: np.ndarray) -> None:
        with self._lock:
            self._points.update(zip(ids, vectors, strict=True))

    def remove(self, ids: list[str]) -> None:
        with self._lock:
            for name in ids:
                del self._points[name]

    def some(self, rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
        with self._lock:
            names = list(self._points)
            chosen = [names[at] for at in rng.integers(0, len(names), count)]
            return chosen, np.stack([self._points[name] for name in chosen])

    def __len__(self) -> int:
        return len(self._points)


def test_training_is_automatic(client: vectorfleet.Client, name: str, rng: np.random.Generator) -> None:
    client.create_collection(name, dim=DIM, shards=2, index=vectorfleet.IndexOptions(train_points=600))
    client.upsert(name, ids=list(range(500)), vectors=rng.standard_normal((500, DIM)))
    before = client.wait_indexed(name, timeout=60)
    assert before.progress.codebook.version == 0, "too few points to train"
    client.upsert(name, ids=list(range(500, 700)), vectors=rng.standard_normal((200, DIM)))
    first = client.wait_indexed(name, timeout=60).progress.codebook
    assert first.version == 1
    assert first.checksum
    assert 600 <= first.trained_points <= 700
    client.upsert(name, ids=list(range(700, 5_700)), vectors=rng.standard_normal((5_000, DIM)))
    second = client.wait_indexed(name, timeout=60).progress.codebook
    assert second.version == 2, "eight times as many points deserve another codebook"
    assert second.checksum != first.checksum
    assert second.nlist >= first.nlist


def test_a_flat_collection_never_trains(client: vectorfleet.Client, name: str, rng: np.random.Generator) -> None:
    client.create_collection(name, dim=DIM, shards=2, index=vectorfleet.IndexOptions(kind="flat", train_points=300))
    vectors = rng.standard_normal((1_000, DIM)).astype(np.float32)
    client.upsert(name, ids=list(range(1_000)), vectors=vectors)
    assert client.wait_indexed(name, timeout=60).progress.codebook.version == 0
    assert client.search(name, vectors=vectors[:50], k=1).ids[:, 0].tolist() == [str(number) for number in range(50)]


def test_eight_bit_codes(client: vectorfleet.Client, name: str, rng: np.random.Generator) -> None:
    client.create_collection(name, dim=DIM, shards=2, index=vectorfleet.IndexOptions(kind="ivf_pq", train_points=1_000))
    vectors = rng.standard_normal((10_500, DIM)).astype(np.float32)
    client.upsert(name, ids=list(range(10_500)), vectors=vectors)
    assert client.wait_indexed(name, timeout=90).progress.codebook.version >= 1
    found = client.search(name, vectors=vectors[:50], k=1).ids[:, 0].tolist()
    assert sum(one == str(number) for number, one in enumerate(found)) >= 48


def test_every_acknowledged_point_is_found_at_every_instant(
    cluster: LocalCluster, client: vectorfleet.Client, name: str, rng: np.random.Generator
) -> None:
    client.create_collection(name, dim=DIM, shards=3, index=vectorfleet.IndexOptions(train_points=300))
    known = Acknowledged()
    first, ids = rng.standard_normal((300, DIM)).astype(np.float32), [f"0-{row}" for row in range(300)]
    client.upsert(name, ids=ids, vectors=first)
    known.put(ids, first)
    # With the first codebook there, the points to come make the next ones due.
    client.wait_indexed(name, timeout=60)
    done = threading.Event()
    seeds = rng.integers(0, 2**32, 2)

    def search_on(seed: int, exact: bool) -> tuple[int, int]:
        """Asks for acknowledged points until the writer is done; returns how many it asked for and found."""
        mine, asked, right = np.random.default_rng(seed), 0, 0
        with vectorfleet.Client(cluster.address, timeout=30.0) as searcher:
            while not done.is_set():
                ids, vectors = known.some(mine, 8)
                found = searcher.search(name, vectors=vectors, k=1, exact=exact)
                assert found.coverage.complete, found.coverage
                for wanted, hits in zip(ids, found.hits, strict=True):
                    asked, right = asked + 1, right + (hits[0].id == wanted)
                    assert (hits[0].score == 0.0) == (hits[0].id == wanted)
                    assert hits[0].id == wanted or not exact, f"{wanted} was acknowledged, after {asked} found {hits}"
        return asked, right

    def write_on() -> None:
        """Writes 12,000 points in batches; points of passing ids come, change and go in between."""
        with vectorfleet.Client(cluster.address, timeout=30.0) as writer:
            for batch in range(1, 41):
                vectors = rng.standard_normal((300, DIM)).astype(np.float32)
                ids = [f"{batch}-{row}" for row in range(300)]
                writer.upsert(name, ids=ids, vectors=vectors)
                known.put(ids, vectors)
                passing = [f"passing-{row}" for row in range(50)]
                writer.upsert(name, ids=passing, vectors=rng.standard_normal((50, DIM)))
                assert writer.delete(name, ids=passing).deleted == 50

    with ThreadPoolExecutor(3) as pool:
        searchers = [pool.submit(search_on, int(seed), exact) for seed, exact in zip(seeds, (True, False), strict=True)]
        writing = pool.submit(write_on)
        try:
            writing.result(timeout=120)
            client.wait_indexed(name, timeout=120)
        finally:
            done.set()
        exactly, usually = (searcher.result(timeout=60) for searcher in searchers)
    assert min(exactly[0], usually[0]) > 100, f"the searchers hardly ran: {exactly}, {usually}"
    assert exactly[0] == exactly[1]
    assert usually[1] >= 0.97 * usually[0], usually
    settled = client.get_collection(name)
    assert settled.progress.codebook.version >= 2
    assert settled.progress.points == client.count(name) == len(known)


def test_settling_drops_dead_rows(
    client: vectorfleet.Client, new_name: Callable[[], str], rng: np.random.Generator
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM, shards=1)
    vectors = rng.standard_normal((2_000, DIM)).astype(np.float32)
    client.upsert(name, ids=list(range(2_000)), vectors=vectors)
    client.wait_indexed(name, timeout=60)
    client.delete(name, ids=list(range(1_500)))
    until(lambda: client.get_collection(name).progress.tombstones == 0, what="compaction drops the dead rows")
    assert client.count(name) == 500
    assert client.search(name, vectors=vectors[1_500:1_501], k=1).ids[0, 0] == "1500"
