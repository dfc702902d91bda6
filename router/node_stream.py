"""The searches of one node over one long-lived stream, on the router's side: sent in turn, answered in any order.

A search over a stream costs about half of a call of its own, in time and in work, on both sides. The stream is opened by the
first search, and again by the first one after it broke. What waits when it breaks fails; nothing is sent twice.

A search begins to be sent in the step in which it is asked, and who asks is told by a callback in that in which the answer is
read: a future or a task in between would cost the event loop a turn, and every search pays for each of its turns.

Invariants: an answer reaches the search whose number it carries, or nobody; each search ends when the stream does; a search
that was given up before it was sent is not sent.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from google.rpc import status_pb2

from vectorfleet import errors
from vectorfleet.internal.v1 import shard_service_pb2

if TYPE_CHECKING:
    from vectorfleet.internal.v1 import shard_service_pb2_grpc

TIMEOUT_MS_MAX: Final = 2**32 - 1

Outcome: TypeAlias = "shard_service_pb2.SearchResponse | errors.VectorfleetError"
Told: TypeAlias = Callable[[Outcome], None]
"""Hears what a search came to."""

_log = logging.getLogger(__name__)


class NodeStream:
    """All searches of one router that one node has not answered yet. Belongs to one event loop."""

    def __init__(self, stub: shard_service_pb2_grpc.ShardServiceAsyncStub) -> None:
        self._stub = stub
        self._open: _OpenStream | None = None
        self._numbers = itertools.count(1)

    def ask(self, message: shard_service_pb2.SearchStreamRequest, timeout_s: float, told: Told) -> Callable[[], None]:
        """Sends a search; the caller bounds the wait.

        Args:
            message: its `request` is filled, the rest is set here.
            timeout_s: for how long the node shall work on it.
            told: hears, later and once, the answer or the error: the node's own, or `Unavailable`, UNREACHABLE, where the
                stream broke. It raises nothing.

        Returns:
            What gives the search up: nothing is told any more, and the node learns of it. No effect once it was told.
        """
        stream = self._open
        if stream is None or stream.ended:
            # It is nobody's: in the context of the search that happens to open it, all others would pass for parts of that.
            stream = self._open = contextvars.Context().run(_open, self._stub)
        message.request_id = number = next(self._numbers)
        message.timeout_ms = min(TIMEOUT_MS_MAX, max(1, int(timeout_s * 1000)))
        stream.waiting[number] = told
        stream.send(message)
        return partial(stream.forget, number)

    def retire(self) -> None:
        """Lets the stream end by itself, once what waits is answered: nothing more is asked here."""
        if self._open is not None:
            self._open.retire()

    def end(self) -> None:
        """Ends the stream: all that wait fail, and the next search opens another."""
        if self._open is not None:
            self._open.end()


def _open(stub: shard_service_pb2_grpc.ShardServiceAsyncStub) -> _OpenStream:
    return _OpenStream(stub.SearchStream())


class _OpenStream:
    def __init__(self, call: Any) -> None:
        self.ended = False
        self.waiting: dict[int, Told] = {}
        self._call = call
        self._outgoing: OrderedDict[int, shard_service_pb2.SearchStreamRequest] = OrderedDict()
        """By their numbers: searches whose callers wait, and what gives up searches that were sent. So it is bounded by what
        the callers admit and what the node takes at once, however long the node reads nothing."""
        self._writing = False
        self._retired = False
        self._reader = asyncio.create_task(self._read())

    def send(self, message: shard_service_pb2.SearchStreamRequest) -> None:
        self._outgoing[message.request_id] = message
        if not self._writing:
            _step(self._write())

    def forget(self, number: int) -> None:
        if self.waiting.pop(number, None) is not None and self._outgoing.pop(number, None) is None:
            self.send(shard_service_pb2.SearchStreamRequest(request_id=number))

    def retire(self) -> None:
        self._retired = True
        if not self._writing:
            _step(self._write())

    def end(self) -> None:
        self.ended = True
        self._call.cancel()

    async def _write(self) -> None:
        """Writes what waits to be written. It raises nothing: that the stream broke is the reader's to tell."""
        self._writing = True
        try:
            while self._outgoing:
                await self._call.write(self._outgoing.popitem(last=False)[1])
            if self._retired:
                await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            self._outgoing.clear()
        finally:
            self._writing = False

    async def _read(self) -> None:
        error: errors.VectorfleetError = errors.Unavailable("the node ended the stream", reason="UNREACHABLE")
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                told = self.waiting.pop(response.request_id, None)
                if told is not None:
                    _tell(told, response)
        except grpc.aio.AioRpcError as broken:
            error = errors.from_rpc_error(broken)
            if isinstance(error, errors.InternalError):
                # gRPC gives the stream this status itself where it broke while a message was being sent, and CANCELLED, which
                # is read as one as well, where the other side let go of it.
                error = errors.Unavailable(f"the stream broke: {error.message}", reason="UNREACHABLE")
        except asyncio.CancelledError:
            error = errors.Unavailable("it is given up", reason="UNREACHABLE")
        finally:
            self.ended = True
            self._call.cancel()
            waiting, self.waiting = self.waiting, {}
            for told in waiting.values():
                _tell(told, error)


def _tell(told: Told, said: shard_service_pb2.SearchStreamResponse | errors.VectorfleetError) -> None:
    try:
        if isinstance(said, errors.VectorfleetError):
            told(said)
        elif said.WhichOneof("outcome") == "error":
            told(errors.from_status(status_pb2.Status.FromString(said.error)))
        else:
            told(said.response)
    except Exception:  # a defect: it must not end the stream, on which others wait
        _log.exception("the answer to a search could not be taken")


def _step(steps: Coroutine[asyncio.Future[Any], None, None], _: object = None) -> None:
    """Takes the first step of a coroutine that awaits nothing but futures at once, and the others as these are done.

    A task would take its first step in the next turn of the loop. And who is cancelled while gRPC writes takes the whole stream
    along: nobody can cancel this.
    """
    try:
        awaited = steps.send(None)
    except StopIteration:
        return
    awaited.add_done_callback(partial(_step, steps))
