"""Many searches over one long-lived stream: bounded, each with its own deadline, each with its own answer or error.

Answers come in the order in which they are done (`vectorfleet.streaming`). A request that fails is answered with its error,
and the stream goes on: even one that cannot be decoded, as far as its id can be told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from router.deadline import Deadline
from vectorfleet import errors, limits, malformed, serving, streaming
from vectorfleet.v1 import search_service_pb2

_REQUEST: Final = search_service_pb2.SearchStreamRequest.REQUEST_FIELD_NUMBER
_REQUEST_ID: Final = search_service_pb2.SearchStreamRequest.REQUEST_ID_FIELD_NUMBER

Answer: TypeAlias = Callable[[search_service_pb2.SearchRequest, Deadline], Awaitable[search_service_pb2.SearchResponse]]


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A message of the stream that protobuf refuses."""

    request_id: int
    """0 where it cannot be told."""
    error: errors.InvalidRequest


def decode(raw: bytes) -> search_service_pb2.SearchStreamRequest | Undecodable:
    """Reads one message of a stream; never raises."""
    crowded = malformed.crowded(raw, wrapped_in=_REQUEST)
    if crowded is not None:
        return Undecodable(malformed.first_number(raw, _REQUEST_ID), crowded)
    try:
        return search_service_pb2.SearchStreamRequest.FromString(raw)
    except DecodeError:
        error = malformed.explain(search_service_pb2.SearchStreamRequest.DESCRIPTOR, raw)
        return Undecodable(malformed.first_number(raw, _REQUEST_ID), error)


def answer_stream(
    requests: AsyncIterator[search_service_pb2.SearchStreamRequest | Undecodable],
    answer: Answer,
    whole: Deadline | None,
    stopping: asyncio.Event,
) -> AsyncIterator[search_service_pb2.SearchStreamResponse]:
    """Answers a stream of requests.

    Args:
        requests: what the client sends.
        answer: answers one search; raises `VectorfleetError`.
        whole: the deadline of the stream itself; None: it has none.
        stopping: set when the process stops: nothing more is read, and what is under way is answered.

    Raises:
        Unavailable: SHUTTING_DOWN, after the last answer.
    """
    open_ids: set[int] = set()

    async def run(
        request: search_service_pb2.SearchStreamRequest | Undecodable,
    ) -> search_service_pb2.SearchStreamResponse:
        response = search_service_pb2.SearchStreamResponse(request_id=request.request_id)
        try:
            if isinstance(request, Undecodable):
                raise request.error
            deadline = Deadline.of_caller(request.timeout_ms / 1000 or None, limits.SEARCH_TIMEOUT_DEFAULT_S)
            deadline = deadline if whole is None else min(deadline, whole)
            with _claimed(open_ids, request.request_id):
                response.response.CopyFrom(await answer(request.request, deadline))
        except Exception as error:
            response.error = errors.to_status(serving.as_vectorfleet_error(error, "SearchStream")).SerializeToString()
        return response

    return streaming.answer_all(requests, run, at_once=limits.STREAM_INFLIGHT_MAX, stopping=stopping)


@contextlib.contextmanager
def _claimed(open_ids: set[int], request_id: int) -> Iterator[None]:
    """Holds a request id while its request is open."""
    if request_id == 0:
        raise errors.InvalidRequest("a request_id is required, and is not 0", field="request_id")
    if request_id in open_ids:
        raise errors.InvalidRequest(f"request {request_id} is still open", field="request_id")
    open_ids.add(request_id)
    try:
        yield
    finally:
        open_ids.discard(request_id)
