"""Searches of one router that come over a long-lived stream: each answered for itself, none ended by another's failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from vectorfleet import errors, limits, serving, streaming
from vectorfleet.internal.v1 import shard_service_pb2 as pb

AT_ONCE: Final = 1024
"""Searches of one stream at once: a router bounds what it sends by itself; this only bounds what a broken one could do."""

Search = Callable[[pb.SearchRequest, float, pb.SearchResponse], Awaitable[None]]
"""Answers a search within so many seconds, into a message; raises `VectorfleetError`."""


def answer_stream(
    requests: AsyncIterator[pb.SearchStreamRequest], search: Search, stopping: asyncio.Event
) -> AsyncIterator[pb.SearchStreamResponse]:
    """Answers a stream of searches. Raises `Unavailable`, SHUTTING_DOWN, after the last answer once `stopping` is set."""
    under_way: dict[int, asyncio.Task[Any]] = {}

    async def run(request: pb.SearchStreamRequest) -> pb.SearchStreamResponse | None:
        number = request.request_id
        if not request.HasField("request"):
            given_up = under_way.pop(number, None)
            if given_up is not None:
                given_up.cancel()
            return None
        task = asyncio.current_task()
        assert task is not None
        response = pb.SearchStreamResponse(request_id=number)
        response.response.SetInParent()  # an answer without shards is an answer, too
        try:
            if number in under_way:
                raise errors.InvalidRequest(f"request {number} is still open", field="request_id")
            under_way[number] = task
            timeout_s = request.timeout_ms / 1000 or limits.SEARCH_TIMEOUT_DEFAULT_S
            await search(request.request, timeout_s, response.response)
        except asyncio.CancelledError:
            if under_way.get(number) is task:
                raise  # the stream itself has ended
            task.uncancel()
            return None
        except Exception as error:
            told = serving.as_vectorfleet_error(error, "SearchStream")
            response.error = errors.to_status(told).SerializeToString()
        finally:
            if under_way.get(number) is task:
                del under_way[number]
        return response

    return streaming.answer_all(requests, run, at_once=AT_ONCE, stopping=stopping)
