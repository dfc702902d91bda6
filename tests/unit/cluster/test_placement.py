"""Golden values: a change of the hash or of the ranges would lose every point on disk."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorfleet import limits
from vectorfleet.cluster.placement import (
    HashPlacement,
    PlacementKind,
    hash_ranges,
    placement_for,
    point_hash,
)
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment

LAST = 2**64 - 1


def shards(count: int) -> tuple[ShardAssignment, ...]:
    return tuple(ShardAssignment(number, first, last) for number, (first, last) in enumerate(hash_ranges(count)))


@pytest.mark.parametrize(
    ("point_id", "expected"),
    [
        ("", 0x2D06800538D394C2),
        ("a", 0xE6C632B61E964E1F),
        ("point-1", 0x1AD1D8D15B45A73D),
        ("Zürich", 0x0BA44FCC12CCA74E),
        ("点", 0xB04D7BC7A560D213),
        ("0" * 256, 0x67D63BD8D3B5DE34),
    ],
)
def test_the_hash_is_golden(point_id: str, expected: int) -> None:
    assert point_hash(point_id) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ((0, LAST),)),
        (2, ((0, 0x7FFFFFFFFFFFFFFF), (0x8000000000000000, LAST))),
        (
            3,
            (
                (0, 0x5555555555555554),
                (0x5555555555555555, 0xAAAAAAAAAAAAAAA9),
                (0xAAAAAAAAAAAAAAAA, LAST),
            ),
        ),
    ],
)
def test_the_ranges_are_golden(count: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert hash_ranges(count) == expected


def test_the_shards_of_golden_ids() -> None:
    ids = ["", "a", "point-1", "Zürich", "点"]
    assert HashPlacement(shards(1)).shards_of(ids).tolist() == [0, 0, 0, 0, 0]
    assert HashPlacement(shards(2)).shards_of(ids).tolist() == [0, 1, 0, 0, 1]
    assert HashPlacement(shards(7)).shards_of(ids).tolist() == [1, 6, 0, 0, 4]


@given(st.integers(1, limits.SHARDS_MAX))
def test_ranges_cover_the_hash_space_evenly(count: int) -> None:
    ranges = hash_ranges(count)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == LAST
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(ranges))
    sizes = {last - first for first, last in ranges}
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 40), st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30))
def test_every_point_is_on_the_shard_whose_range_holds_its_hash(count: int, ids: list[str]) -> None:
    ranges = hash_ranges(count)
    placed = HashPlacement(shards(count)).shards_of(ids)
    assert placed.dtype == np.int32
    for point_id, shard in zip(ids, placed.tolist(), strict=True):
        assert ranges[shard][0] <= point_hash(point_id) <= ranges[shard][1]


def test_both_ends_of_a_range_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"first": 0, "last of 0": LAST // 2, "first of 1": LAST // 2 + 1, "last": LAST}
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda data: hashes[data.decode()])
    assert HashPlacement(shards(2)).shards_of(list(hashes)).tolist() == [0, 0, 1, 1]


def test_a_split_shard_moves_no_point_of_the_others() -> None:
    first, second = shards(2)
    middle = first.hash_last // 2
    split = [second, replace(first, hash_last=middle), replace(first, shard=2, hash_first=middle + 1)]
    ids = [f"id-{number}" for number in range(500)]
    before, after = HashPlacement([first, second]).shards_of(ids), HashPlacement(split).shards_of(ids)
    assert set(after[before == 0].tolist()) == {0, 2}
    assert set(after[before == 1].tolist()) == {1}
    assert HashPlacement(split).shards_to_search() == (0, 1, 2)


@pytest.mark.parametrize(
    "broken",
    [
        (),
        shards(3)[1:],
        shards(3)[:2],
        (shards(3)[0], shards(3)[2]),
        (shards(2)[0], *shards(2)),
        (ShardAssignment(0, 5, 1),),
    ],
)
def test_a_gap_or_an_overlap_is_refused(broken: tuple[ShardAssignment, ...]) -> None:
    with pytest.raises(ValueError, match="hash ranges"):
        HashPlacement(broken)


def test_no_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one shard"):
        hash_ranges(0)


def test_a_record_is_placed_by_hash() -> None:
    placement = placement_for(CollectionRecord("c", "u", 4, 1, shards(4)))
    assert placement.kind is PlacementKind.HASH
    assert placement.shards_to_search() == (0, 1, 2, 3)
    assert placement.shards_of([]).tolist() == []
