"""A share of a merged batch on the wire: hit by hit and column by column, both say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router.merge import ShardAnswer, merge
from router.results import search_response
from router.searches import Share
from router.validation import SearchOptions
from vectorfleet.v1 import types_pb2

DIM, QUERIES, K = 2, 4, 3


def answer(shard: int, counts: list[int], rng: np.random.Generator, *, payloads: bool) -> ShardAnswer:
    """Hits named after where they come from: shard, query, rank."""
    scores = np.concatenate([np.sort(rng.random(count)) for count in counts]).astype(np.float32)
    ids = [f"{shard}-{query}-{rank}" for query, count in enumerate(counts) for rank in range(count)]
    vectors = rng.random((len(ids), DIM)).astype("<f4").tobytes()
    return ShardAnswer(
        shard, np.array(counts, np.uint32), scores, ids, [one.encode() for one in ids] if payloads else [], vectors
    )


@pytest.mark.parametrize("contents", [{}, {"with_payload": True}, {"with_vector": True}])
def test_packed_hits_are_the_same_hits(contents: dict[str, Any], rng: np.random.Generator) -> None:
    answers = [answer(0, [3, 0, 2, 3], rng, payloads=True), answer(1, [2, 0, 0, 3], rng, payloads=False)]
    winners = merge(answers, QUERIES, K, descending=False)
    coverage = types_pb2.Coverage(shards_total=2, shards_answered=2)
    share = Share(answers, winners, 1, 3, coverage)  # the last three queries of the batch
    options = SearchOptions(K, **contents)
    plain = search_response(share, DIM, options, packed=False)
    answered = search_response(share, DIM, options, packed=True)
    assert [len(result.hits) for result in plain.results] == [0, 2, 3]
    assert not plain.HasField("packed")
    assert not answered.results
    assert plain.coverage == answered.coverage == coverage

    hits = [hit for result in plain.results for hit in result.hits]
    packed = answered.packed
    assert np.frombuffer(packed.counts, "<u4").tolist() == [0, 2, 3]
    assert list(packed.ids) == [hit.id for hit in hits]
    assert np.frombuffer(packed.scores, "<f4").tolist() == [hit.score for hit in hits]
    assert list(packed.payloads) == ([hit.payload for hit in hits] if "with_payload" in contents else [])
    assert packed.vectors == b"".join(hit.vector for hit in hits)
    for hit in hits:
        source = answers[int(hit.id[0])]
        row = list(source.ids).index(hit.id)
        assert hit.score == source.scores[row]
        has_payload = "with_payload" in contents and source.shard == 0
        assert hit.payload == (hit.id.encode() if has_payload else b"")
        assert hit.vector == (source.vectors[8 * row : 8 * row + 8] if "with_vector" in contents else b"")


def test_a_share_without_hits_is_packed_all_the_same() -> None:
    share = Share([], merge([], 2, K, descending=False), 0, 2, types_pb2.Coverage(shards_total=1))
    answered = search_response(share, DIM, SearchOptions(K), packed=True)
    assert np.frombuffer(answered.packed.counts, "<u4").tolist() == [0, 0]
