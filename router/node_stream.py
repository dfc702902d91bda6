"""The searches of one node over one long-lived stream, on the router's side: sent in turn, answered in any order.

A search over a stream costs about half of a call of its own, in time and in work, on both sides. The stream is opened by the
first search, and again by the first one after it broke. What waits when it breaks fails; nothing is sent twice.

Invariants: an answer reaches the search whose number it carries, or nobody; each search ends when the stream does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.rpc import status_pb2

from vectorfleet import errors
from vectorfleet.internal.v1 import shard_service_pb2

if TYPE_CHECKING:
    from vectorfleet.internal.v1 import shard_service_pb2_grpc

TIMEOUT_MS_MAX: Final = 2**32 - 1


class NodeStream:
    """All searches of one router that one node has not answered yet. Belongs to one event loop."""

    def __init__(self, stub: shard_service_pb2_grpc.ShardServiceAsyncStub) -> None:
        self._stub = stub
        self._open: _OpenStream | None = None
        self._numbers = itertools.count(1)

    async def search(
        self, message: shard_service_pb2.SearchStreamRequest, timeout_s: float
    ) -> shard_service_pb2.SearchResponse:
        """Sends a search, and waits for its answer; the caller bounds the wait.

        Args:
            message: its `request` is filled, the rest is set here.
            timeout_s: for how long the node shall work on it.

        Raises:
            VectorfleetError: the node's own; `Unavailable`, UNREACHABLE, where the stream broke.
        """
        if self._open is None or self._open.ended:
            self._open = _OpenStream(self._stub.SearchStream())
        message.request_id = number = next(self._numbers)
        message.timeout_ms = min(TIMEOUT_MS_MAX, max(1, int(timeout_s * 1000)))
        return await self._open.ask(number, message)

    def retire(self) -> None:
        """Lets the stream end by itself, once what waits is answered: nothing more is asked here."""
        if self._open is not None:
            self._open.retire()

    def end(self) -> None:
        """Ends the stream: all that wait fail, and the next search opens another."""
        if self._open is not None:
            self._open.end()


class _OpenStream:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._waiting: dict[int, asyncio.Future[shard_service_pb2.SearchResponse]] = {}
        # Bounded by what its callers admit: each of them waits for its answer.
        self._outgoing: asyncio.Queue[shard_service_pb2.SearchStreamRequest | None] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    @property
    def ended(self) -> bool:
        return bool(self._call.done())

    def retire(self) -> None:
        self._outgoing.put_nowait(None)

    def end(self) -> None:
        self._call.cancel()

    async def ask(
        self, number: int, message: shard_service_pb2.SearchStreamRequest
    ) -> shard_service_pb2.SearchResponse:
        answer: asyncio.Future[shard_service_pb2.SearchResponse] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._outgoing.put_nowait(message)
        try:
            return await answer
        finally:
            if self._waiting.pop(number, None) is not None:  # the caller has gone
                self._outgoing.put_nowait(shard_service_pb2.SearchStreamRequest(request_id=number))

    async def _write(self) -> None:
        # In a task of its own: who is cancelled while gRPC writes takes the whole stream along.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            while (message := await self._outgoing.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()

    async def _read(self) -> None:
        error: errors.VectorfleetError = errors.Unavailable("the node ended the stream", reason="UNREACHABLE")
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._settle(response)
        except grpc.aio.AioRpcError as broken:
            error = errors.from_rpc_error(broken)
            if isinstance(error, errors.InternalError):
                # gRPC gives the stream this status itself where it broke while a message was being sent.
                error = errors.Unavailable(f"the stream broke: {error.message}", reason="UNREACHABLE")
        except asyncio.CancelledError:
            error = errors.Unavailable("it is given up", reason="UNREACHABLE")
        finally:
            self._call.cancel()
            self._writer.cancel()
            waiting, self._waiting = self._waiting, {}
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(error)

    def _settle(self, response: shard_service_pb2.SearchStreamResponse) -> None:
        answer = self._waiting.pop(response.request_id, None)
        if answer is None or answer.done():
            return
        if response.WhichOneof("outcome") == "error":
            answer.set_exception(errors.from_status(status_pb2.Status.FromString(response.error)))
        else:
            answer.set_result(response.response)
