"""Recall of the default parameters on real vectors, through the cluster, in every state that points can be in.

Skipped, saying so, where the public data sets are not beside the checkout; `make bench` measures the same on all of
them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import vectorfleet
from loadtest import datasets, scoring

K = 10
BAR = 0.95


def siftsmall() -> datasets.VectorSet:
    return datasets.siftsmall()


def mnist_in_part() -> datasets.VectorSet:
    return datasets.mnist(12_000, 100)


def synthetic() -> datasets.VectorSet:
    return datasets.synthetic(12_000, 64, queries=100)


@pytest.mark.parametrize("read", [siftsmall, mnist_in_part, synthetic])
def test_recall_of_default_parameters(
    client: vectorfleet.Client, name: str, read: Callable[[], datasets.VectorSet]
) -> None:
    try:
        data = read()
    except datasets.AbsentDataError as absent:
        pytest.skip(str(absent))
    count, dim = data.base.shape
    live = data.base.copy()
    row_of = {f"p{row}": row for row in range(count)}
    ids = list(row_of)
    client.create_collection(name, dim=dim, metric="l2", shards=2)

    def check(what: str, alive: slice = slice(None)) -> None:
        offset = alive.start or 0
        bounds = scoring.nearest_distances(live[alive], data.queries, K)
        for exact, bar in ((True, 1.0), (False, BAR)):
            found = client.search(name, vectors=data.queries, k=K, exact=exact)
            rows = np.array([[row_of.get(one, -1) - offset for one in line] for line in found.ids], np.int64)
            recall = scoring.recall_by_distance(live[alive], data.queries, np.maximum(rows, -1), bounds)
            assert recall >= bar, f"{what}, exact={exact}: recall@{K} is {recall:.4f}"

    client.upsert(name, ids=ids[: count // 8], vectors=live[: count // 8])
    whole, live = live, live[: count // 8]
    check("a part, mostly in the buffer")
    live = whole
    client.upsert(name, ids=ids, vectors=live)
    check("while it is sealed and trained")
    settled = client.wait_indexed(name, timeout=120)
    assert settled.progress.codebook.version >= 1
    check("trained")

    third = count // 3
    client.delete(name, ids=ids[:third])
    # The middle third changes places: the vectors are as real as before, and each is under another id.
    live[third : 2 * third] = live[third : 2 * third][::-1].copy()
    client.upsert(name, ids=ids[third : 2 * third], vectors=live[third : 2 * third])
    check("after deleting and overwriting", slice(third, None))
    client.wait_indexed(name, timeout=120)
    check("and settled again", slice(third, None))
    assert client.count(name) == count - third
