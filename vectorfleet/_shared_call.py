"""Searches that share a call: what goes with a query, how the requests become one, and how the answer is divided. Pure.

A shared call must not show in what a caller gets. So only searches that ask alike travel together (`codec.Search.lane`,
and the same timeout), the call ends when the first of them has to, and where it fails for what one of them may have
caused, each goes on alone in the time that it has left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vectorfleet import _answers as answers
from vectorfleet import _codec as codec
from vectorfleet import errors
from vectorfleet._models import SearchResult
from vectorfleet.v1 import search_service_pb2

CALLS_IN_FLIGHT: Final = 2
"""Of one lane: while one is under way the next can be sent, and what comes meanwhile waits to go together."""

Lane = tuple[tuple[bytes, int], float]
"""What all searches of a shared call have in common: how they ask, and for how long."""


def time_left_s(deadline_s: float, now_s: float) -> float:
    """Seconds until the deadline. Raises `DeadlineExceeded` where it has passed."""
    left_s = deadline_s - now_s
    if left_s <= 0:
        raise errors.DeadlineExceeded("the time was up before the search was sent")
    return left_s


def join(plans: Sequence[codec.Search]) -> codec.Call[search_service_pb2.SearchRequest]:
    """Makes one call of searches of one lane."""
    return codec.Call(codec.search_request(plans[0].manner.options, [plan.queries[0] for plan in plans]))


def divide(response: search_service_pb2.SearchResponse, plans: Sequence[codec.Search]) -> list[SearchResult]:
    """Gives each search its part of the answer."""
    columns = answers.hit_columns(response.packed)
    coverage, matching = answers.coverage(response.coverage), answers.matching(response)
    return [SearchResult(columns.of_query(number), plan.k, coverage, matching) for number, plan in enumerate(plans)]


def concerns_all(error: errors.VectorfleetError) -> bool:
    """Whether each of the searches would have failed like this alone: what is at fault is not in any of them."""
    return error.retryable or isinstance(error, errors.NotFound) or error.reason in ("OVERLOADED", "CLIENT_CLOSED")
