"""Putting points in with a progress bar that shows rate and time left, and waiting until they are indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

import vectorfleet
from loadtest.datasets import Floats

TEXTS_A_CALL = 128
POINTS_A_CALL = 50_000
CALL_TIMEOUT_S = 120.0
SETTLE_TIMEOUT_S = 900.0


def load_texts(client: vectorfleet.Client, name: str, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Writes texts, which the router embeds: the long ones first, so that the time left is never told too short."""
    order = sorted(range(len(ids)), key=lambda row: len(texts[row]), reverse=True)
    for part in _parts(len(ids), TEXTS_A_CALL, f"loading {name}", " texts"):
        rows = order[part]
        client.upsert(name, ids=[ids[row] for row in rows], texts=[texts[row] for row in rows], timeout=CALL_TIMEOUT_S)


def load_vectors(client: vectorfleet.Client, name: str, vectors: Floats) -> None:
    """Writes vectors, float32 (n, dim), under their row numbers as ids."""
    for part in _parts(len(vectors), POINTS_A_CALL, f"loading {name}", " points"):
        rows = range(part.start, part.start + len(vectors[part]))
        client.upsert(name, ids=rows, vectors=vectors[part], timeout=CALL_TIMEOUT_S)


def settle(client: vectorfleet.Client, name: str) -> vectorfleet.IndexProgress:
    """Waits until nothing is left to train, seal, encode or merge."""
    progress = client.wait_indexed(name, timeout=SETTLE_TIMEOUT_S).progress
    assert progress is not None, "wait_indexed answers with progress"
    return progress


def _parts(count: int, size: int, title: str, unit: str) -> Iterator[slice]:
    with tqdm(total=count, unit=unit, desc=title, unit_scale=count > 100_000, smoothing=0.1) as bar:
        for start in range(0, count, size):
            yield slice(start, start + size)
            bar.update(min(size, count - start))
