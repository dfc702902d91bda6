"""Real questions on a part of BEIR SciFact, with the real model. `make bench` measures all of it."""

from __future__ import annotations

import pytest

import vectorfleet
from loadtest import datasets, scoring


def test_claims_find_their_abstracts(client: vectorfleet.Client, name: str, model_path: str) -> None:
    try:
        data = datasets.scifact()
    except datasets.AbsentDataError as absent:
        pytest.skip(str(absent))
    asked = data.query_ids[:40]
    needed = {answer for query in asked for answer in data.relevant[query]}
    texts = dict(zip(data.ids, data.texts, strict=True))
    others = [one for one in data.ids if one not in needed]
    # Beginnings of abstracts, so that the test stays quick.
    chosen = {one: texts[one][:450] for one in [*sorted(needed), *others[:230]]}
    client.create_collection(
        name, embedding_model=model_path, shards=4, index=vectorfleet.IndexOptions(train_points=256)
    )
    client.upsert(name, ids=list(chosen), texts=list(chosen.values()), timeout=120)
    assert client.wait_indexed(name, timeout=60).progress.codebook.version >= 1
    questions = dict(zip(data.query_ids, data.queries, strict=True))
    for exact in (False, True):
        found = client.search(name, texts=[questions[query] for query in asked], k=10, exact=exact, timeout=60)
        each = [
            scoring.ndcg([hit.id for hit in hits], data.relevant[query], 10)
            for query, hits in zip(asked, found.hits, strict=True)
        ]
        assert sum(each) / len(each) >= 0.80, f"exact={exact}"
