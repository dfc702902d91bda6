"""Rows that came as text, embedded by their collection's model and put in their place among the vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from router.deadline import Deadline
from router.embedding import Embedder, Purpose
from router.validation import Matrix, VectorsAndTexts
from vectorfleet import errors
from vectorfleet.cluster.shard_map import CollectionRecord


async def embed_texts(
    embedder: Embedder,
    rows: VectorsAndTexts,
    record: CollectionRecord,
    purpose: Purpose,
    field: Callable[[int], str],
    deadline: Deadline,
) -> Matrix:
    """Returns all rows as vectors, float32[rows, dim].

    Args:
        embedder: does the work.
        rows: vectors and texts.
        record: their collection.
        purpose: what the texts are for.
        field: names the field of a row.
        deadline: the caller's.

    Raises:
        FailedPrecondition: NO_EMBEDDING_MODEL, or what `Embedder.embed` says.
        DeadlineExceeded: the model did not come to these texts in time.
    """
    if not rows.texts:
        return rows.vectors
    where = field(rows.text_rows[0])
    if not record.embedding_model:
        raise errors.FailedPrecondition(f"collection {record.name} names no embedding model: send vectors", field=where)
    try:
        async with asyncio.timeout_at(deadline.answer_by_s()):
            embedded = await embedder.embed(record.embedding_model, rows.texts, purpose)
    except TimeoutError:
        raise errors.DeadlineExceeded(
            f"the model {record.embedding_model!r} did not come to these texts in time: it is being loaded, or busy with "
            "others; try again, or with a longer deadline"
        ) from None
    if embedded.shape[1] != record.dim or not np.isfinite(embedded).all():
        raise errors.FailedPrecondition(
            f"the model {record.embedding_model!r} no longer gives finite vectors of dimension {record.dim} "
            f"but of {embedded.shape[1]}",
            reason="EMBEDDING_MODEL_UNAVAILABLE",
            field=where,
        )
    vectors = rows.vectors.copy()
    vectors[list(rows.text_rows)] = embedded
    return vectors
