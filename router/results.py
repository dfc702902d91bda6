"""A caller's share of a merged batch as the answer on the wire: the first place where hits become Python objects."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.searches import Share
from router.validation import SearchOptions
from vectorfleet import errors, limits
from vectorfleet.v1 import search_service_pb2

_HIT_BYTES_MAX: Final = limits.ID_BYTES_MAX + 32
"""Of a hit without payload and vector."""


def search_response(
    share: Share, dim: int, options: SearchOptions, *, packed: bool
) -> search_service_pb2.SearchResponse:
    """Renders a share.

    Args:
        share: the caller's.
        dim: of the collection's vectors.
        options: what hits carry.
        packed: column by column, or hit by hit.

    Raises:
        ResourceExhausted: RESPONSE_TOO_LARGE, the answer would pass the limit of a call.
    """
    winners = share.winners
    bounds = winners.offsets[share.first_query : share.first_query + share.queries + 1]
    rows = slice(int(bounds[0]), int(bounds[-1]))
    response = search_service_pb2.SearchResponse(coverage=share.coverage)
    hits = response.packed if packed else search_service_pb2.PackedHits()
    hits.counts = (bounds[1:] - bounds[:-1]).astype("<u4").tobytes()
    hits.ids.extend(winners.ids[rows])
    hits.scores = winners.scores[rows].astype("<f4", copy=False).tobytes()
    if options.wanted:
        response.matching_points = sum(answer.matching_points for answer in share.answers)
    if options.with_payload or options.with_vector:
        _add_contents(hits, share, rows, dim, options)
    if not packed:
        _unpack(hits, bounds - bounds[0], dim, response)
    hit_bytes_max = _HIT_BYTES_MAX + options.with_payload * limits.PAYLOAD_BYTES_MAX + options.with_vector * 4 * dim
    if len(hits.ids) * hit_bytes_max > limits.CALL_BYTES_MAX:  # it might be too large: measure it
        size = response.ByteSize()
        if size > limits.CALL_BYTES_MAX:
            raise errors.ResourceExhausted(
                f"the answer has {size} bytes, the limit is {limits.CALL_BYTES_MAX}: ask for fewer queries, hits, "
                "vectors or payloads",
                reason="RESPONSE_TOO_LARGE",
            )
    return response


def _add_contents(
    hits: search_service_pb2.PackedHits, share: Share, rows: slice, dim: int, options: SearchOptions
) -> None:
    origins = list(zip(share.winners.answer[rows].tolist(), share.winners.position[rows].tolist(), strict=True))
    if options.with_payload and any(answer.payloads for answer in share.answers):
        payloads = [answer.payloads for answer in share.answers]
        hits.payloads.extend(payloads[one][position] if payloads[one] else b"" for one, position in origins)
    if options.with_vector:
        width = 4 * dim
        vectors = [answer.vectors for answer in share.answers]
        hits.vectors = b"".join(vectors[one][width * at : width * (at + 1)] for one, at in origins)


def _unpack(
    hits: search_service_pb2.PackedHits,
    bounds: NDArray[np.int64],
    dim: int,
    response: search_service_pb2.SearchResponse,
) -> None:
    """Adds the hits one by one: the easy form, for callers in any language."""
    ids, payloads, vectors = list(hits.ids), hits.payloads, hits.vectors
    scores = np.frombuffer(hits.scores, "<f4").tolist()
    width = 4 * dim
    for first, last in pairwise(bounds.tolist()):
        add = response.results.add().hits.add
        for row in range(first, last):
            hit = add(id=ids[row], score=scores[row])
            if payloads:
                hit.payload = payloads[row]
            if vectors:
                hit.vector = vectors[width * row : width * (row + 1)]
