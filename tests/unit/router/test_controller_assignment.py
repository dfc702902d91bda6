"""The controller's decisions, as functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.assignment import assign_shards, sample_limits, training_due
from vectorfleet import limits
from vectorfleet.cluster.codebook_shape import SAMPLE_BYTES_MAX, codebook_shape
from vectorfleet.cluster.placement import hash_ranges
from vectorfleet.cluster.shard_map import (
    CodebookRecord,
    CollectionRecord,
    IndexConfig,
    NodeInfo,
    ShardAssignment,
)
from vectorfleet.v1 import types_pb2

FAST_SCAN, IVF_PQ, FLAT = types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN, types_pb2.INDEX_KIND_IVF_PQ, types_pb2.INDEX_KIND_FLAT


def record(name: str, shards: int, index: IndexConfig | None = None) -> CollectionRecord:
    ranges = tuple(ShardAssignment(number, *ends) for number, ends in enumerate(hash_ranges(shards)))
    return CollectionRecord(name, f"uid-{name}", 8, 1, ranges, index=index or IndexConfig())


def nodes(*names: str) -> dict[str, NodeInfo]:
    return {name: NodeInfo(name, f"{name}:1") for name in names}


def primaries(one: CollectionRecord) -> list[str]:
    return [shard.primary for shard in one.shards]


# ---------------------------------------------------------------------- assignment


def test_shards_spread_evenly() -> None:
    one = assign_shards(record("a", 5), nodes("n2", "n1"), [])
    assert primaries(one) == ["n1", "n2", "n1", "n2", "n1"]
    for shard in one.shards:
        assert (shard.replicas, shard.in_sync, shard.term) == ((shard.primary,), (shard.primary,), 1)
    assert one.assigned


def test_the_emptier_node_comes_first() -> None:
    full = assign_shards(record("a", 3), nodes("n1"), [])
    assert primaries(assign_shards(record("b", 4), nodes("n1", "n2"), [full])) == ["n2", "n2", "n2", "n1"]


def test_what_is_assigned_stays_and_counts_once() -> None:
    whole = record("a", 3)
    settled = replace(whole.shards[0], primary="n2", replicas=("n2",), in_sync=("n2",), term=4)
    half = replace(whole, shards=(settled, *whole.shards[1:]))
    one = assign_shards(half, nodes("n1", "n2"), [half])
    assert one.shards[0] == settled
    assert primaries(one) == ["n2", "n1", "n1"]


def test_without_nodes_nothing_changes() -> None:
    one = record("a", 3)
    assert assign_shards(one, {}, []) is one


def test_copies_of_a_shard_are_on_different_nodes() -> None:
    one = assign_shards(replace(record("a", 4), replicas=2), nodes("n1", "n2", "n3"), [])
    assert all(len(set(shard.replicas)) == 2 for shard in one.shards)
    few = assign_shards(replace(record("a", 1), replicas=3), nodes("n1", "n2"), [])
    assert set(few.shards[0].replicas) == {"n1", "n2"}


@given(st.lists(st.integers(1, 12), max_size=5), st.integers(1, 6))
def test_no_node_gets_more_than_one_shard_above_another(sizes: list[int], count: int) -> None:
    live = nodes(*(f"n{number}" for number in range(count)))
    made: list[CollectionRecord] = []
    for number, size in enumerate(sizes):
        made.append(assign_shards(record(f"c{number}", size), live, made))
    load = Counter(dict.fromkeys(live, 0))
    load.update(primary for one in made for primary in primaries(one))
    assert max(load.values()) - min(load.values()) <= 1


# ---------------------------------------------------------------------- training


def trained(points: int, seqno: int = 0) -> CollectionRecord:
    return replace(record("a", 1), codebook=CodebookRecord(1, "0" * 16, 4, 4, points, "n1", seqno))


@pytest.mark.parametrize(
    ("one", "points", "seqnos", "due"),
    [
        (record("a", 1), 9_999, 9_999, False),
        (record("a", 1), 10_000, 10_000, True),
        (record("a", 1, IndexConfig(FAST_SCAN, train_points=256)), 256, 256, True),
        (record("a", 1, IndexConfig(FLAT)), 10**9, 10**9, False),
        (trained(10_000), 79_999, 79_999, False),
        (trained(10_000), 80_000, 80_000, True),
        (trained(0), 0, 0, False),
        (trained(10_000, 12_000), 79_999, 81_999, False),  # growth alone
        (trained(10_000, 12_000), 10_000, 16_999, False),
        (trained(10_000, 12_000), 10_000, 17_000, True),  # half of them written again
        (trained(10_000, 12_000), 20_000, 32_000 + 14_142, True),  # of 20,000, √20,000 ÷ 200 = 0.71 of them
        (trained(10_000, 12_000), 20_000, 22_000 + 14_142, False),
        (trained(1_000_000, 1_000_000), 1_000_000, 5_999_999, False),
        (trained(1_000_000, 1_000_000), 1_000_000, 6_000_000, True),
        (trained(30_000, 30_000), 9_999, 50_001, False),  # so few want none
        (trained(10_000), 10_000, 10**9, False),  # how many there were is not known
    ],
)
def test_when_training_is_due(one: CollectionRecord, points: int, seqnos: int, due: bool) -> None:
    assert training_due(one, points, seqnos, quiet=False) is due


@pytest.mark.parametrize(
    ("nlist", "points", "due"),
    [
        (2048, 1_000_000, False),
        (1024, 1_000_000, True),
        (1024, 700_000, True),  # 4·√350,000 = 2,366, nearer to 2,048
        (1024, 200_000, False),
        (4096, 1_000_000, False),  # too many do no harm
    ],
)
def test_in_a_pause_lists_are_as_many_as_the_points_want(nlist: int, points: int, due: bool) -> None:
    one = replace(record("a", 2), codebook=CodebookRecord(1, "0" * 16, nlist, 64, 200_000, "n1", points))
    one = replace(one, dim=128)
    assert training_due(one, points, points, quiet=True) is due
    assert not training_due(one, points, points, quiet=False)
    after = replace(one, codebook=CodebookRecord(2, "0" * 16, 2048, 64, points, "n1", points))
    assert not training_due(after, points, points, quiet=True)


@pytest.mark.parametrize(
    ("kind", "dim", "points", "shards", "expected"),
    [
        (FAST_SCAN, 128, 10_000, 1, (256, 64)),  # 4·√10,000 = 400, but 10,000 / 39 allows 256
        (FAST_SCAN, 128, 1_000_000, 1, (4096, 64)),
        (FAST_SCAN, 128, 1_000_000, 2, (2048, 64)),
        (FAST_SCAN, 128, 1_000_000, 64, (512, 64)),
        (FAST_SCAN, 128, 500_000, 1, (2048, 64)),
        (IVF_PQ, 128, 100_000, 1, (1024, 32)),
        (FAST_SCAN, 97, 10_000, 1, (256, 49)),
        (IVF_PQ, 97, 10_000, 1, (256, 25)),
        (FAST_SCAN, 1, 256, 1, (4, 1)),
        (IVF_PQ, 1, 1, 1, (1, 1)),
        (IVF_PQ, 1, 1, 8, (1, 1)),
        (FAST_SCAN, 384, 5_183, 1, (128, 192)),
    ],
)
def test_the_shape_of_a_codebook(kind: int, dim: int, points: int, shards: int, expected: tuple[int, int]) -> None:
    assert codebook_shape(kind, dim, points, shards) == expected


def test_the_creators_shape_is_kept_as_far_as_training_allows() -> None:
    assert codebook_shape(FAST_SCAN, 128, 10_000, 1, nlist=77, m=16) == (77, 16)
    assert codebook_shape(FAST_SCAN, 128, 300, 2, nlist=4096) == (300, 64)


@given(
    st.sampled_from([FAST_SCAN, IVF_PQ]),
    st.integers(1, limits.DIM_MAX),
    st.integers(limits.TRAIN_POINTS_MIN, 10**9),
    st.integers(1, 64),
)
def test_a_training_has_memory_and_points_enough(kind: int, dim: int, points: int, shards: int) -> None:
    nlist, m = codebook_shape(kind, dim, points, shards)
    assert nlist & (nlist - 1) == 0
    assert 1 <= nlist <= limits.NLIST_MAX
    assert 1 <= m <= dim
    share = dict.fromkeys(range(shards), points // shards)
    wanted = sample_limits(nlist, dim, share)
    assert sum(wanted.values()) * 4 * dim <= SAMPLE_BYTES_MAX + shards * 4 * dim
    if points >= shards * shards:  # rounding takes less than a point from a shard
        assert sum(wanted.values()) >= min(39 * nlist, sum(share.values()))


def test_samples_are_drawn_in_proportion() -> None:
    assert sample_limits(256, 8, {2: 300_000, 0: 100_000, 1: 0}) == {0: 16_384, 2: 49_152}
    assert sample_limits(256, 8, {0: 10, 1: 20}) == {0: 10, 1: 20}
    assert sample_limits(256, 8, {0: 0}) == {}
    assert min(sample_limits(1, 8, {0: 1, 1: 10**7}).values()) == 1
