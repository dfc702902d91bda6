"""Data to measure with: four public sets where they lie beside the checkout, and a synthetic one that is always there.

Nothing is downloaded. The public sets are read from `VECTORFLEET_TEST_DATA`, or from `shared/data` beside the checkout;
where one is absent, `AbsentDataError` says what was looked for. Every reader answers the same arrays each time.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class AbsentDataError(FileNotFoundError):
    """A public set is not on this machine; the message says where it was looked for."""


@dataclass(frozen=True)
class VectorSet:
    """Vectors to store and to ask for, under L2."""

    name: str
    base: Floats
    """(points, dim)"""
    queries: Floats
    """(queries, dim)"""


@dataclass(frozen=True)
class TextSet:
    """Texts to store, questions to ask, and which texts answer which question."""

    name: str
    ids: Sequence[str]
    texts: Sequence[str]
    query_ids: Sequence[str]
    queries: Sequence[str]
    relevant: Mapping[str, Mapping[str, int]]
    """Query id → text id → how relevant, above 0."""


def folder(name: str) -> Path:
    """Finds the folder of one public set; raises `AbsentDataError`."""
    given = os.environ.get("VECTORFLEET_TEST_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (root / name).is_dir():
        where = (
            "VECTORFLEET_TEST_DATA"
            if given
            else "shared/data beside the checkout; VECTORFLEET_TEST_DATA names another place"
        )
        raise AbsentDataError(f"the data set {name!r} is absent: no folder {root / name} ({where})")
    return root / name


def scifact(split: str = "test", texts: int | None = None) -> TextSet:
    """BEIR SciFact: 5,183 abstracts (title and text joined by a blank) and the claims that one split judges.

    Args:
        split: which claims.
        texts: keep so many abstracts: all that answer a claim, and of the others as many as a seed draws; None: all.
    """
    at = folder("scifact")
    documents = list(_json_lines(at / "corpus.jsonl.xz"))
    questions = {str(row["_id"]): str(row["text"]) for row in _json_lines(at / "queries.jsonl.xz")}
    relevant: dict[str, dict[str, int]] = {}
    with (at / "qrels" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                relevant.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    asked = sorted(relevant, key=int)
    if texts is not None:
        needed = {name for answers in relevant.values() for name in answers}
        others = [row for row, document in enumerate(documents) if str(document["_id"]) not in needed]
        drawn = np.random.default_rng(1).permutation(others)[: max(0, texts - len(needed))]
        kept = {str(documents[row]["_id"]) for row in drawn} | needed
        documents = [document for document in documents if str(document["_id"]) in kept]
    return TextSet(
        name="scifact",
        ids=[str(row["_id"]) for row in documents],
        texts=[f"{row['title']} {row['text']}".strip() for row in documents],
        query_ids=asked,
        queries=[questions[name] for name in asked],
        relevant=relevant,
    )


def wordnet(limit: int | None = None) -> TextSet:
    """Open English WordNet: definitions, and example sentences that each belong to one of them.

    Args:
        limit: only the first so many definitions, and the examples of those; None: all 107,525.
    """
    at = folder("wordnet")
    kept: list[dict[str, Any]] = []
    for row in _json_lines(at / "synsets.jsonl.xz"):
        if limit is not None and len(kept) == limit:
            break
        kept.append(row)
    ids = [str(row["_id"]) for row in kept]
    known = set(ids)
    examples = [row for row in _json_lines(at / "example_queries.jsonl.xz") if row["relevant"] in known]
    query_ids = [f"{row['relevant']}#{position}" for position, row in enumerate(examples)]
    return TextSet(
        name="wordnet",
        ids=ids,
        texts=[f"{row['title']}: {row['text']}" for row in kept],
        query_ids=query_ids,
        queries=[str(row["text"]) for row in examples],
        relevant={name: {str(row["relevant"]): 1} for name, row in zip(query_ids, examples, strict=True)},
    )


def siftsmall() -> VectorSet:
    """ANN_SIFT10K: 10,000 × 128, with 100 queries."""
    at = folder("siftsmall")
    return VectorSet(
        name="siftsmall",
        base=_fvecs(_unpacked(at / "siftsmall_base.fvecs.xz")),
        queries=_fvecs((at / "siftsmall_query.fvecs").read_bytes()),
    )


def siftsmall_neighbours() -> NDArray[np.int32]:
    """The published 100 nearest rows of each siftsmall query, int32 (100, 100)."""
    return _vecs((folder("siftsmall") / "siftsmall_groundtruth.ivecs").read_bytes()).view(np.int32)


def mnist(points: int = 60_000, queries: int = 10_000) -> VectorSet:
    """mnist-784-euclidean: 60,000 × 784 with values 0 to 255, and 10,000 queries; the first so many of each."""
    at = folder("mnist")
    return VectorSet(
        name="mnist-784",
        base=_images(_unpacked(at / "train-images-idx3-ubyte.xz"))[:points],
        queries=_images(gzip.decompress((at / "t10k-images-idx3-ubyte.gz").read_bytes()))[:queries],
    )


def mnist_neighbours() -> NDArray[np.int64]:
    """The published 100 nearest rows of each MNIST query among all 60,000, int64 (10000, 100)."""
    packed = _unpacked(folder("mnist") / "gt100_ids_u16.npy.xz")
    neighbours: NDArray[np.int64] = np.load(io.BytesIO(packed), allow_pickle=False).astype(np.int64)
    return neighbours


def synthetic(points: int, dim: int = 128, *, queries: int = 1_000, seed: int = 1) -> VectorSet:
    """Clustered vectors of low intrinsic dimension, as embeddings and image descriptors are.

    A point is a cluster's centre plus as much Gaussian spread, both drawn in a latent space of `dim / 2` dimensions whose
    variances fall as 1 / rank, turned into `dim` dimensions by a random linear map, plus a little white noise. For 128
    dimensions that makes an effective dimension (of the covariance's participation ratio) of about 14, near that of SIFT
    descriptors. There is one cluster for every 500 points, and sizes fall as in Zipf's law with exponent 0.5. Queries are
    fresh draws, not stored points.

    Args:
        points: how many to store.
        dim: of each vector.
        queries: how many to ask.
        seed: the same seed gives the same arrays (under one version of numpy).
    """
    rng = np.random.default_rng(seed)
    latent = max(2, dim // 2)
    clusters = max(8, points // 500)
    scale = (1.0 / np.sqrt(np.arange(1, latent + 1))).astype(np.float32)
    turn = (rng.standard_normal((latent, dim)) / np.sqrt(latent)).astype(np.float32)
    centres = rng.standard_normal((clusters, latent), dtype=np.float32) * scale
    weights = 1.0 / np.sqrt(np.arange(1, clusters + 1))
    weights /= weights.sum()

    def draw(count: int) -> Floats:
        drawn = np.empty((count, dim), np.float32)
        for start in range(0, count, 100_000):
            part = drawn[start : start + 100_000]
            members = centres[rng.choice(clusters, size=len(part), p=weights)]
            members = members + scale * rng.standard_normal((len(part), latent), dtype=np.float32)
            np.matmul(members, turn, out=part)
            part += 0.1 * rng.standard_normal(part.shape, dtype=np.float32)
        return drawn

    return VectorSet(name=f"synthetic-{points}x{dim}", base=draw(points), queries=draw(queries))


def _unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _vecs(content: bytes) -> Floats:
    # Each row is its dimension as int32, then so many values of four bytes.
    dim = int(np.frombuffer(content, "<i4", count=1)[0])
    rows = np.frombuffer(content, "<f4").reshape(-1, dim + 1)
    return np.ascontiguousarray(rows[:, 1:])


def _fvecs(content: bytes) -> Floats:
    return _vecs(content)


def _images(content: bytes) -> Floats:
    # IDX: a magic number and three sizes, big-endian, then one byte a pixel.
    _, count, height, width = np.frombuffer(content, ">i4", count=4).tolist()
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height * width).astype(np.float32)
