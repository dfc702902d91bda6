"""A client's part in the traces of the program that uses it.

It imports nothing: a program that traces has imported OpenTelemetry's API itself, and is found by that. Otherwise all of this
costs a look into a dictionary. The program's own provider and sampler decide; the context goes along in the call's metadata.

Searches that share a call: the call belongs to the trace of the first of them that is recorded, and links to the others; each of
these shows the same call in its own trace, linked to that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from vectorfleet._credentials import Metadata
from vectorfleet._version import __version__

ChannelT = TypeVar("ChannelT")
_API: Final = "opentelemetry.trace"
_OFF: Final = nullcontext(None)


class CallSpan:
    """The span of one search, or of one call. As a context manager it is the current one, and ends."""

    __slots__ = ("_api", "_span", "_started_ns", "_within")

    def __init__(self, api: Any, name: str, kind: str, links: Sequence[CallSpan] = (), started_ns: int = 0) -> None:
        self._api = api
        self._started_ns = started_ns or time.time_ns()
        self._span: Any = api.get_tracer("vectorfleet", __version__).start_span(
            name,
            kind=getattr(api.SpanKind, kind),
            links=[api.Link(one._span.get_span_context()) for one in links],
            start_time=self._started_ns,
        )

    @property
    def recorded(self) -> bool:
        """Whether anybody will see it."""
        return bool(self._span.is_recording())

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """The W3C trace context of it, also where it is not sampled: it says so."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return None
        parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"
        state = context.trace_state.to_header() if context.trace_state else ""
        return (("traceparent", parent), ("tracestate", state)) if state else (("traceparent", parent),)

    def __enter__(self) -> Self:
        """Makes it the current one."""
        self._within = self._api.use_span(self._span, record_exception=False, set_status_on_exception=False)
        self._within.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends it: with what was raised, or without."""
        self._within.__exit__(None, None, None)
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Ends it."""
        if error is not None:
            why = getattr(error, "reason", "") or type(error).__name__
            self._span.set_status(self._api.Status(self._api.StatusCode.ERROR, why))
            if request_id := getattr(error, "request_id", ""):
                self._span.set_attribute("vectorfleet.request_id", request_id)
        self._span.end()

    def show(self, call: CallSpan) -> None:
        """Shows a call that belongs to another trace in this one, too, as it was until now."""
        with self._api.use_span(self._span):
            CallSpan(self._api, "shared call", "CLIENT", [call], call._started_ns).end()


class SharedCall:
    """Several searches while they make one call together."""

    def __init__(self, searches: Sequence[CallSpan]) -> None:
        """Takes those that are recorded, at least one."""
        self._leader, *self.others = searches
        self.call: CallSpan | None = None

    def __enter__(self) -> Self:
        """The call belongs to the first of them."""
        self._token = _SHARED.set(self)
        self._within = self._leader._api.use_span(self._leader._span)
        self._within.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The others show it."""
        self._within.__exit__(None, None, None)
        _SHARED.reset(self._token)
        if self.call is not None:
            for one in self.others:
                one.show(self.call)


_SHARED: ContextVar[SharedCall | None] = ContextVar("vectorfleet shared call", default=None)


def searching() -> AbstractContextManager[CallSpan | None]:
    """The span of a search, below the program's current one; of None where the program does not trace."""
    api = sys.modules.get(_API)
    return _OFF if api is None else CallSpan(api, "vectorfleet search", "INTERNAL")


def sharing(searches: Sequence[CallSpan | None]) -> AbstractContextManager[SharedCall | None]:
    """While searches make one call."""
    if searches[0] is None:
        return _OFF
    recorded = [one for one in searches if one is not None and one.recorded]
    return SharedCall(recorded) if recorded else _OFF


def traced(channel: ChannelT) -> ChannelT:
    """Lets the unary calls of a channel, blocking or asyncio, be spans and carry their context."""
    make: Callable[..., Any] = channel.unary_unary  # type: ignore[attr-defined]
    asynchronous = type(channel).__module__.startswith("grpc.aio")

    def unary_unary(path: str, *arguments: Any, **options: Any) -> Any:
        method = make(path, *arguments, **options)
        return (_AsyncCalls if asynchronous else _Calls)(path[1:], method)

    channel.unary_unary = unary_unary  # type: ignore[attr-defined]
    return channel


class _Calls:
    """A method of a stub; `grpc.UnaryUnaryMultiCallable`, as far as the client uses it."""

    __slots__ = ("_method", "_name")

    def __init__(self, name: str, method: Any) -> None:
        self._name = name
        self._method = method

    def __call__(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        api = sys.modules.get(_API)
        if api is None:
            return self._method(request, timeout=timeout, metadata=metadata)
        with _call(api, self._name) as span:
            return self._method(request, timeout=timeout, metadata=_joined(metadata, span.metadata))

    def future(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        api = sys.modules.get(_API)
        if api is None:
            return self._method.future(request, timeout=timeout, metadata=metadata)
        span = _call(api, self._name)
        sent = self._method.future(request, timeout=timeout, metadata=_joined(metadata, span.metadata))
        sent.add_done_callback(lambda done: span.end(None if done.cancelled() else done.exception()))
        return sent


class _AsyncCalls(_Calls):
    """The same of `grpc.aio`."""

    __slots__ = ()

    def __call__(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        api = sys.modules.get(_API)
        if api is None:
            return self._method(request, timeout=timeout, metadata=metadata)
        return self._traced(api, request, timeout, metadata)

    async def _traced(self, api: Any, request: Any, timeout_s: float | None, metadata: Metadata | None) -> Any:
        with _call(api, self._name) as span:
            return await self._method(request, timeout=timeout_s, metadata=_joined(metadata, span.metadata))


def _joined(own: Metadata | None, context: Metadata | None) -> Metadata:
    return (*(own or ()), *(context or ()))


def _call(api: Any, name: str) -> CallSpan:
    shared = _SHARED.get()
    span = CallSpan(api, name, "CLIENT", () if shared is None else shared.others)
    if shared is not None:
        shared.call = span
    return span
