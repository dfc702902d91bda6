"""How the blocking client makes its calls: with its credential, within their time, and again where that is of use.

Several calls of one method (a large upsert) are in flight at once through gRPC's own futures; no thread of ours is involved.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import grpc

from vectorfleet import _arguments as arguments
from vectorfleet import _codec as codec
from vectorfleet import errors
from vectorfleet._attempts import Attempts
from vectorfleet._channel import Endpoint
from vectorfleet._credentials import Metadata
from vectorfleet._restraint import Restraint

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Calls:
    """The calls of one client.

    Attributes:
        timeout_s: of a call that is given none.
        closed: whether the client was closed; calls then fail with `CLIENT_CLOSED`.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, restraint: Restraint) -> None:
        self._endpoint = endpoint
        self._restraint = restraint
        self.timeout_s = timeout_s
        self.closed = False

    def one(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None,
        *,
        repeatable: bool = True,
    ) -> ResponseT:
        """Makes one call.

        Args:
            method: of a stub.
            request: what it carries.
            timeout: seconds for all attempts; None: the client's.
            repeatable: False: it is tried again only where nothing can have happened.

        Raises:
            VectorfleetError: what the call failed with at last.
        """
        return self.whole(method, codec.Call(request), self.seconds(timeout), repeatable=repeatable)

    def whole(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        call: codec.Call[RequestT],
        timeout_s: float,
        *,
        repeatable: bool = True,
    ) -> ResponseT:
        """Makes one call, of which it is known what rows it carries, within `timeout_s`. Raises as `one` does."""
        return self._finish(method, call, timeout_s, Attempts(timeout_s, time.monotonic(), repeatable=repeatable))

    def each(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        calls: Iterable[codec.Call[RequestT]],
        in_flight: int,
        timeout: float | None,
    ) -> Iterator[ResponseT]:
        """Makes several calls, at most `in_flight` at once; answers come in the order of the calls."""
        timeout_s = self.seconds(timeout)
        waiting: deque[tuple[codec.Call[RequestT], float, Attempts, grpc.Future[ResponseT] | None]] = deque()
        upcoming = iter(calls)
        call, following = next(upcoming, None), next(upcoming, None)
        if call is not None and following is None:
            # A blocking call costs less than a future, which pays only where others fly beside it.
            yield self.whole(method, call, timeout_s)
            return
        try:
            while call is not None:
                if len(waiting) == in_flight:
                    yield self._finish(method, *waiting.popleft())
                sent: grpc.Future[ResponseT] | None = None
                if self._restraint.refused:
                    self._restraint.before(method, call.request)
                with contextlib.suppress(ValueError):  # the client was closed: `_finish` will say so
                    sent = method.future(call.request, timeout=timeout_s, metadata=self.metadata())
                waiting.append((call, timeout_s, Attempts(timeout_s, time.monotonic()), sent))
                call, following = following, next(upcoming, None)
            while waiting:
                yield self._finish(method, *waiting.popleft())
        finally:
            for _, _, _, sent in waiting:
                if sent is not None:
                    sent.cancel()

    def _finish(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        call: codec.Call[RequestT],
        left_s: float,
        attempts: Attempts,
        sent: grpc.Future[ResponseT] | None = None,
    ) -> ResponseT:
        """Makes a call, of which the first attempt may have been `sent`, until it succeeds or there is no use in trying."""
        while True:
            try:
                if sent is not None:
                    return sent.result()
                if self._restraint.refused:
                    self._restraint.before(method, call.request)
                return method(call.request, timeout=left_s, metadata=self._endpoint.metadata())
            except (grpc.RpcError, ValueError) as error:
                failure = codec.located(self.failure(error), call.rows)
                self._restraint.after(method, call.request, failure)
                pause_s = attempts.pause_s(failure, time.monotonic())
                if pause_s is None:
                    raise failure from error
            time.sleep(pause_s)
            sent = None
            left_s = attempts.remaining_s(time.monotonic())

    def metadata(self) -> Metadata | None:
        """What the next call carries besides its request."""
        return self._endpoint.metadata()

    def failure(self, error: Exception) -> errors.VectorfleetError:
        """Reads what a channel raised; raises what it did not."""
        if isinstance(error, ValueError) and not self.closed:
            raise error  # of our own making; of a closed channel, it is gRPC's
        return self._endpoint.failure(error, closed=self.closed)

    def seconds(self, timeout: float | None) -> float:
        """The seconds that a call may take. Raises `InvalidRequest`."""
        return self.timeout_s if timeout is None else arguments.seconds(timeout)
