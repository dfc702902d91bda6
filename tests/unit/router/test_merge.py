"""merge: against a naive sort, with ties, repeats and shards that know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.merge import ShardAnswer, merge

Hit = tuple[str, float]


def answer_of(shard: int, per_query: list[list[Hit]], *, descending: bool) -> ShardAnswer:
    ordered = [sorted(hits, key=lambda hit: (-hit[1] if descending else hit[1], hit[0])) for hits in per_query]
    flat = [hit for hits in ordered for hit in hits]
    return ShardAnswer(
        shard,
        np.array([len(hits) for hits in ordered], np.uint32),
        np.array([score for _, score in flat], np.float32),
        [point_id for point_id, _ in flat],
    )


def naive(shards: list[list[list[Hit]]], query: int, k: int, *, descending: bool) -> list[Hit]:
    hits = [hit for shard in shards for hit in shard[query]]
    hits.sort(key=lambda hit: (-hit[1] if descending else hit[1], hit[0].encode()))
    seen: dict[str, float] = {}
    for point_id, score in hits:
        seen.setdefault(point_id, score)
    return list(seen.items())[:k]


def merged(shards: list[list[list[Hit]]], queries: int, k: int, *, descending: bool) -> list[list[Hit]]:
    answers = [answer_of(number, shard, descending=descending) for number, shard in enumerate(shards)]
    winners = merge(answers, queries, k, descending=descending)
    for row, point_id in enumerate(winners.ids):
        assert answers[winners.answer[row]].ids[winners.position[row]] == point_id
        assert answers[winners.answer[row]].scores[winners.position[row]] == winners.scores[row]
    flat = list(zip(winners.ids, winners.scores.tolist(), strict=True))
    return [flat[winners.offsets[q] : winners.offsets[q + 1]] for q in range(queries)]


# Few ids and few scores, so that ties and repeats are common.
hits = st.dictionaries(st.sampled_from(["a", "b", "c", "é", "z", "\U0001f600", "￿"]), st.integers(-2, 2).map(float))


@given(
    st.integers(1, 4).flatmap(
        lambda queries: st.tuples(
            st.just(queries),
            st.lists(st.lists(hits.map(lambda h: list(h.items())), min_size=queries, max_size=queries), max_size=4),
        )
    ),
    st.integers(1, 6),
    st.booleans(),
)
def test_agrees_with_a_naive_sort(shape: tuple[int, list[list[list[Hit]]]], k: int, descending: bool) -> None:
    queries, shards = shape
    got = merged(shards, queries, k, descending=descending)
    assert got == [naive(shards, q, k, descending=descending) for q in range(queries)]


def test_no_answers_give_empty_results() -> None:
    winners = merge([], 3, 10, descending=False)
    assert winners.offsets.tolist() == [0, 0, 0, 0]
    assert winners.ids == []


@pytest.mark.parametrize("descending", [False, True])
def test_many_queries_and_shards(descending: bool) -> None:
    rng = np.random.default_rng(7)
    queries, k = 50, 10
    shards = [
        [[(f"{s}-{q}-{i}", float(np.float32(rng.standard_normal()))) for i in range(k)] for q in range(queries)]
        for s in range(8)
    ]
    got = merged(shards, queries, k, descending=descending)
    assert got == [naive(shards, q, k, descending=descending) for q in range(queries)]
