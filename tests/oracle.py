"""The truth that answers are held against: brute force in float64, in numpy alone.

Knows nothing of vectorfleet: metrics are the words "l2", "dot" and "cosine", and an answer is whatever has `.id` and
`.score`. Ties are broken by the bytes of the id, as the contract says.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

RELATIVE = 1e-5
"""How far a score may stand from the truth: the promise of the contract."""

Floats = NDArray[np.float64]


class Hit(Protocol):
    """What an answer consists of."""

    @property
    def id(self) -> str: ...

    @property
    def score(self) -> float: ...


def scores(metric: str, queries: ArrayLike, vectors: ArrayLike) -> Floats:
    """Computes all scores, float64 (queries, vectors); the inputs are taken as the float32 values that a server sees."""
    left = np.atleast_2d(np.asarray(queries, dtype=np.float32)).astype(np.float64)
    right = np.atleast_2d(np.asarray(vectors, dtype=np.float32)).astype(np.float64)
    if metric == "l2":
        return np.stack([np.sqrt(np.square(right - row).sum(axis=1)) for row in left])
    products = left @ right.T
    if metric == "dot":
        return products
    if metric == "cosine":
        lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None, :]
        return np.asarray(products / lengths)
    raise ValueError(f"unknown metric {metric!r}")


def ascending(metric: str) -> bool:
    """Whether a smaller score is a nearer point."""
    return metric == "l2"


def nearest(
    metric: str, queries: ArrayLike, ids: Sequence[str], vectors: ArrayLike, k: int
) -> list[list[tuple[str, float]]]:
    """Finds for each query the k nearest points, best first, as (id, score)."""
    sign = 1.0 if ascending(metric) else -1.0
    names = [name.encode() for name in ids]
    found = []
    for row in scores(metric, queries, vectors):
        order = sorted(range(len(ids)), key=lambda at: (sign * row[at], names[at]))[:k]
        found.append([(ids[at], float(row[at])) for at in order])
    return found


def tolerance(metric: str, query: ArrayLike, vector: ArrayLike, score: float) -> float:
    """Says how far a float32 score may be off: relative to the score, and, where large terms cancel, to those."""
    lengths = float(np.linalg.norm(np.asarray(query, np.float64)) * np.linalg.norm(np.asarray(vector, np.float64)))
    floor = {"l2": 1e-30, "dot": 1e-6 * lengths, "cosine": 1e-6}[metric]
    return RELATIVE * abs(score) + floor


def check_answer(
    metric: str, query: ArrayLike, points: Mapping[str, ArrayLike], hits: Sequence[Hit], k: int, *, exact: bool = True
) -> None:
    """Asserts all that the contract promises of one query's hits.

    Args:
        metric: "l2", "dot" or "cosine".
        query: float32 (dim,).
        points: every live point, by id.
        hits: the answer, best first.
        k: what was asked for.
        exact: also that these are the nearest points of all; else only that what is answered is true.
    """
    names = [hit.id for hit in hits]
    assert len(set(names)) == len(names), f"an id is answered twice: {sorted(names)}"
    strangers = set(names) - points.keys()
    assert not strangers, f"these points do not exist: {sorted(strangers)}"
    assert len(hits) == min(k, len(points)) or (not exact and len(hits) <= k), f"{len(hits)} hits for k={k}"
    if not hits:
        return
    truth = scores(metric, query, np.stack([np.asarray(points[name], np.float32) for name in names]))[0]
    for hit, score in zip(hits, truth, strict=True):
        allowed = tolerance(metric, query, points[hit.id], float(score))
        assert abs(hit.score - score) <= allowed, f"{hit.id}: score {hit.score!r}, truth {score!r}"
    sign = 1.0 if ascending(metric) else -1.0
    for earlier, later in itertools.pairwise(hits):
        order = (sign * earlier.score, earlier.id.encode()), (sign * later.score, later.id.encode())
        assert order[0] < order[1], f"{earlier} stands before {later}"
    if exact:
        best = nearest(metric, query, list(points), np.stack([np.asarray(v, np.float32) for v in points.values()]), k)[
            0
        ]
        for hit, (name, score) in zip(hits, best, strict=True):
            allowed = tolerance(metric, query, points[name], score)
            # Two points nearer to one another than float32 can tell may change places.
            assert hit.id == name or abs(hit.score - score) <= allowed, (
                f"{hit.id} at {hit.score}, not {name} at {score}"
            )


def recall(
    metric: str, queries: ArrayLike, points: Mapping[str, ArrayLike], answers: Sequence[Sequence[Hit]], k: int
) -> float:
    """Scores recall@k by distance: an answered point counts when its true score is as good as the k-th best.

    So a point that ties with the k-th nearest is as right as that one, and an id that is answered twice counts once.
    """
    sign = 1.0 if ascending(metric) else -1.0
    row_of = {name: row for row, name in enumerate(points)}
    every = sign * scores(metric, queries, np.stack([np.asarray(v, np.float32) for v in points.values()]))
    wanted = min(k, len(points))
    bound = np.partition(every, wanted - 1, axis=1)[:, wanted - 1]
    bound += 1e-6 * np.abs(bound)
    good = 0
    for row, limit, hits in zip(every, bound, answers, strict=True):
        rows = {row_of[hit.id] for hit in hits[:k] if hit.id in row_of}
        good += sum(bool(row[at] <= limit) for at in rows)
    return good / (wanted * len(every))
