"""A caller's share of a merged batch as the answer on the wire: the first place where hits become Python objects."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from router.searches import Share
from router.validation import SearchOptions
from vectorfleet import errors, limits
from vectorfleet.v1 import search_service_pb2

_HIT_BYTES_MAX: Final = limits.ID_BYTES_MAX + 32
"""Of a hit without payload and vector."""


def search_response(share: Share, dim: int, options: SearchOptions) -> search_service_pb2.SearchResponse:
    """Renders a share.

    Raises:
        ResourceExhausted: RESPONSE_TOO_LARGE, the answer would pass the limit of a call.
    """
    winners = share.winners
    bounds = winners.offsets[share.first_query : share.first_query + share.queries + 1].tolist()
    begin, end = bounds[0], bounds[-1]
    scores = winners.scores[begin:end].tolist()
    ids = winners.ids[begin:end]
    response = search_service_pb2.SearchResponse(coverage=share.coverage)
    for first, last in pairwise(bounds):
        add = response.results.add().hits.add
        for row in range(first - begin, last - begin):
            add(id=ids[row], score=scores[row])
    if options.wanted:
        response.matching_points = sum(answer.matching_points for answer in share.answers)
    if options.with_payload or options.with_vector:
        _add_contents(response, share, begin, end, dim, options)
    hit_bytes_max = _HIT_BYTES_MAX + options.with_payload * limits.PAYLOAD_BYTES_MAX + options.with_vector * 4 * dim
    if (end - begin) * hit_bytes_max > limits.CALL_BYTES_MAX:  # it might be too large: measure it
        size = response.ByteSize()
        if size > limits.CALL_BYTES_MAX:
            raise errors.ResourceExhausted(
                f"the answer has {size} bytes, the limit is {limits.CALL_BYTES_MAX}: ask for fewer queries, hits, "
                "vectors or payloads",
                reason="RESPONSE_TOO_LARGE",
            )
    return response


def _add_contents(
    response: search_service_pb2.SearchResponse, share: Share, begin: int, end: int, dim: int, options: SearchOptions
) -> None:
    origins = zip(share.winners.answer[begin:end].tolist(), share.winners.position[begin:end].tolist(), strict=True)
    hits = (hit for result in response.results for hit in result.hits)
    for hit, (source, position) in zip(hits, origins, strict=True):
        answer = share.answers[source]
        if options.with_payload and answer.payloads:
            hit.payload = answer.payloads[position]
        if options.with_vector:
            hit.vector = answer.vectors[4 * dim * position : 4 * dim * (position + 1)]
