"""Filters on a replica with an index: through the lists, far from the query, and with terms that were lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shard_server.engine import probing, search, segment
from shard_server.engine.replica import EngineSettings, Replica
from tests.unit.engine.conftest import OpenReplica, codebook_for, maintain, settle, upsert
from vectorfleet.errors import DataLoss
from vectorfleet.v1 import types_pb2

DIM, POINTS, CLUMPS, K = 8, 4000, 16, 10
SETTINGS = EngineSettings(seal_points=POINTS // 2)


def clump(number: int) -> types_pb2.Filter:
    return types_pb2.Filter(field={"path": "clump", "equals": {"values": [{"int_value": number}]}})


def none_of(*inner: types_pb2.Filter) -> types_pb2.Filter:
    return types_pb2.Filter(none_of={"filters": inner})


def vectors() -> NDArray[np.float32]:
    """Clumps far apart, so that a query's nearest lists hold its own clump alone."""
    rng = np.random.default_rng(3)
    centres = 20 * rng.standard_normal((CLUMPS, DIM))
    return (centres[np.arange(POINTS) % CLUMPS] + rng.standard_normal((POINTS, DIM))).astype(np.float32)


@pytest.fixture
def replica(open_replica: OpenReplica) -> Replica:
    """Two encoded segments."""
    one = open_replica(settings=SETTINGS)
    every = vectors()
    payloads = {str(row): b'{"clump": %d, "row": %d}' % (row % CLUMPS, row) for row in range(POINTS)}
    for first in range(0, POINTS, POINTS // 2):
        one.commit([upsert({str(row): every[row] for row in range(first, first + POINTS // 2)}, payloads)], term=1)
        if first == 0:
            one.use_codebook(codebook_for(one, nlist=32, m=4))
        maintain(one, float(first))
    assert one.stats().segments == 2
    assert one.stats().indexed_points == POINTS
    return one


def nearest(query: NDArray[np.float32], rows: NDArray[np.int64]) -> list[str]:
    distances = np.square(vectors()[rows] - query).sum(axis=1)
    return [str(row) for row in rows[np.argsort(distances)[:K]]]


@pytest.fixture(params=["through the lists", "one by one"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "through the lists":
        monkeypatch.setattr(search, "EXACT_BYTES", 0)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("wanted", [3, 11])
def test_what_passes_is_found_however_far_it_is(replica: Replica, wanted: int) -> None:
    queries = vectors()[7:23]  # one of each clump, most of them far from what passes
    rows = np.arange(wanted, POINTS, CLUMPS)
    hits = replica.search(queries, K, nprobe=1, oversample=20, wanted=clump(wanted))
    assert hits.counts.tolist() == [K] * len(queries)
    assert hits.matching == len(rows)
    found = [set(hits.ids[K * at : K * at + K]) & set(nearest(query, rows)) for at, query in enumerate(queries)]
    assert sum(map(len, found)) >= 0.95 * K * len(queries)


@pytest.mark.usefixtures("_way")
def test_a_thin_filter_looks_into_more_lists(replica: Replica) -> None:
    """One list holds k that pass, but not the nearest k: as many candidates are looked at as without a filter."""
    queries, rows = vectors()[1000:1064], np.arange(400)
    thin = types_pb2.Filter(field={"path": "row", "range": {"lt": {"int_value": 400}}})
    found = [
        set(replica.search(query[None], 4, nprobe=1, wanted=thin).ids) & set(nearest(query, rows)[:4])
        for query in queries
    ]
    assert sum(map(len, found)) >= 0.97 * 4 * len(queries)


@pytest.mark.usefixtures("_way")
def test_a_filter_that_excludes_all_that_is_near_still_gives_k(replica: Replica) -> None:
    queries = vectors()[5::CLUMPS][:20]
    hits = replica.search(queries, K, nprobe=1, wanted=none_of(clump(5)))
    assert hits.counts.tolist() == [K] * len(queries)
    assert {int(point_id) % CLUMPS for point_id in hits.ids}.isdisjoint({5})


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("k", [1, 249, 250, 300])
def test_k_is_met_as_long_as_so_many_pass(replica: Replica, k: int) -> None:
    hits = replica.search(vectors()[:2], k, nprobe=1, wanted=clump(9))
    assert hits.counts.tolist() == [min(k, POINTS // CLUMPS)] * 2


@pytest.mark.parametrize("k", [500, 3000, POINTS])
def test_k_is_met_without_a_filter_too(replica: Replica, k: int) -> None:
    hits = replica.search(vectors()[:3], k, nprobe=1, oversample=1)
    assert hits.counts.tolist() == [k] * 3
    assert len(set(hits.ids[:k])) == k


def test_a_query_visits_the_nearest_lists_that_hold_enough(replica: Replica) -> None:
    codebook = codebook_for(replica, nlist=32, m=4)
    queries = vectors()[:5]
    per_list = np.zeros(32, np.int64)
    per_list[[2, 3, 30]] = 10
    every = codebook.distances(queries).argsort(axis=1)
    lists = probing.nearest_lists(codebook, queries, per_list, 15, 1)
    for mine, all_lists in zip(lists, every, strict=True):
        assert mine.tolist() == [number for number in all_lists if per_list[number]][:2]
    all_of_them = probing.nearest_lists(codebook, queries, per_list, 31, 1)
    assert all(set(row) == {2, 3, 30} for row in all_of_them.tolist())
    two = probing.nearest_lists(codebook, queries, per_list, 1, 2)
    assert two.tolist() == lists.tolist()
    per_list[every[0, 0]] = 100
    uneven = probing.nearest_lists(codebook, queries[:1], per_list, 50, 1)
    assert uneven.tolist() == [[every[0, 0]]]


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_lost_terms_are_made_anew(replica: Replica, open_replica: OpenReplica, tmp_path: Path, harm: str) -> None:
    replica.commit([upsert({"0": vectors()[0]}, {"0": b'{"clump": "another"}'})], term=1)
    expected = replica.search(vectors()[:4], 300, wanted=clump(0), exact=True)
    assert expected.matching == POINTS // CLUMPS - 1
    replica.close()
    files = sorted(tmp_path.rglob("terms"))
    assert len(files) == 2
    whole = files[0].read_bytes()
    if harm == "flip":
        files[0].write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    else:
        files[0].unlink()
    for _ in range(2):  # made anew once, and then found whole
        again = open_replica(settings=SETTINGS)
        found = again.search(vectors()[:4], 300, wanted=clump(0), exact=True)
        assert (found.ids, found.matching) == (expected.ids, expected.matching)
        again.close()
        assert len(files[0].read_bytes()) > 1000
        left = files[0].stat().st_mtime_ns
    assert files[0].stat().st_mtime_ns == left


def test_a_merge_keeps_the_terms_of_what_it_joins_and_drops(replica: Replica) -> None:
    overwritten = {str(row): vectors()[row] for row in range(1200)}
    replica.commit([upsert(overwritten, {str(row): b'{"clump": 99}' for row in range(0, 1200, 2)})], term=1)
    settle(replica)
    assert replica.stats().segments == 1
    assert replica.stats().tombstones == 0
    for number, count in ((99, 600), (2, len(range(1202, POINTS, CLUMPS))), (1, len(range(1201, POINTS, CLUMPS)))):
        assert replica.search(vectors()[:1], 1, wanted=clump(number)).matching == count
    there = types_pb2.Filter(field={"path": "clump", "exists": True})
    assert replica.search(vectors()[:1], 1, wanted=none_of(there)).matching == 600


def test_a_new_segment_must_have_its_terms(replica: Replica, tmp_path: Path) -> None:
    """Only recovery may make terms anew: later, payloads in the store may be newer than the rows."""
    part = replica._state.view.segments[0].segment
    (tmp_path / "replica" / "segments" / str(part.number) / "terms").unlink()
    with pytest.raises(DataLoss, match="terms cannot be read"):
        segment.open_segment(part.directory, part.entry, DIM, types_pb2.METRIC_L2)
