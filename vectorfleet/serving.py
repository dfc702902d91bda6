"""What router and shard server have in common as gRPC servers: errors on the wire, deadlines, health, reflection.

`new_server` makes a server that maps every exception to the error table, `LiveReadyHealth` answers grpc.health.v1 with
*live* apart from *ready*, `remaining_s` reads a caller's deadline. Knows nothing of what is served. Needs the `server`
extra; a client never imports it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vectorfleet import errors, malformed, open_files
from vectorfleet.rpc_options import CHANNEL_OPTIONS, SERVER_OPTIONS
from vectorfleet.telemetry.context import REQUEST_ID
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.telemetry.work import Work, enter
from vectorfleet.transport import bind

__all__ = [
    "CHANNEL_OPTIONS",
    "SERVER_OPTIONS",
    "HealthPort",
    "LiveReadyHealth",
    "RpcErrors",
    "abort",
    "as_vectorfleet_error",
    "new_server",
    "remaining_s",
    "told",
]

LIVENESS: Final = "liveness"
READINESS: Final = "readiness"
_MESSAGE_BYTES_MAX: Final = 900
"""A status travels in HTTP/2 trailers, limited to 8 KiB: percent-encoded once, and twice within the details."""

_METHODS_MAX: Final = 1_000
"""More than there are: names of methods that do not exist are callers' to choose."""
_PROBE_BYTES_MAX: Final = 4096
_PROBES_MAX: Final = 64
"""Anybody who reaches that port may ask."""

_log = logging.getLogger(__name__)


def new_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    *,
    outermost: Sequence[grpc.aio.ServerInterceptor] = (),
    reuse_port: bool = False,
    telemetry: Telemetry | None = None,
) -> grpc.aio.Server:
    """Makes a server with our limits that turns every exception of its handlers into the error table's status.

    Args:
        interceptors: further ones; they run inside the mapping, so that what they raise is mapped too.
        outermost: these run outside of it: they see each call before its request is parsed, and its status, no exceptions.
        reuse_port: True: the port may be shared with other processes that allow it too.
        telemetry: is told of every call; None: calls get their request ids, and nothing is told.
    """
    own = {"grpc.so_reuseport": int(reuse_port), "grpc.max_allowed_incoming_connections": open_files.connections_max()}
    options = {**dict(SERVER_OPTIONS), **own}
    mapping = RpcErrors(telemetry or Telemetry())
    return grpc.aio.server(options=list(options.items()), interceptors=[*outermost, mapping, *interceptors])


def remaining_s(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> float:
    """Returns the seconds that the caller still waits: `default_s` where it set no deadline; never negative."""
    remaining: float | None = context.time_remaining()
    return default_s if remaining is None else max(0.0, remaining)


class RpcErrors(grpc.aio.ServerInterceptor):
    """Maps what handlers raise, and requests that do not parse, to rich statuses. Handlers just raise.

    `VectorfleetError` keeps its reason; what a channel to a peer raised is read back into one; `TimeoutError` becomes
    DEADLINE_EXCEEDED; anything else is logged with its traceback and becomes INTERNAL, without details for strangers. Every
    answer, also an error, carries the call's request id back.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        # Every call passes here: a handler is wrapped once, not once a call.
        self._wrapped: dict[str, tuple[object, grpc.RpcMethodHandler[Any, Any]]] = {}

    async def intercept_service(  # type: ignore[override]
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        method = handler_call_details.method
        known, guarded = self._wrapped.get(method, (None, None))
        if known is handler:
            return guarded
        changes: dict[str, Any] = {"request_deserializer": _lenient(handler.request_deserializer)}
        for kind in ("unary_unary", "stream_unary"):
            if getattr(handler, kind) is not None:
                changes[kind] = _guarded(getattr(handler, kind), method, self._telemetry)
        for kind in ("unary_stream", "stream_stream"):
            if getattr(handler, kind) is not None:
                changes[kind] = _guarded_stream(getattr(handler, kind), method, self._telemetry)
        wrapped: grpc.RpcMethodHandler[Any, Any] = handler._replace(**changes)
        if len(self._wrapped) < _METHODS_MAX:
            self._wrapped[method] = handler, wrapped
        return wrapped


class LiveReadyHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: "liveness" is SERVING while the process answers; all other names only while it is ready.

    A process that is live but not ready must not be restarted, only left out of traffic.
    """

    def __init__(self) -> None:
        self._ready = False
        self._stopping = False
        self._services: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def install(self, server: grpc.aio.Server, services: Iterable[str]) -> None:
        """Adds health and reflection to a server.

        Args:
            server: not started yet.
            services: full names of the services that it serves; health knows them and reflection lists them.
        """
        names = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        self._services = frozenset(("", READINESS, *names))
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)

    @property
    def ready(self) -> bool:
        """Whether this process takes traffic."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Says whether this process takes traffic."""
        self._ready = ready
        self._wake()

    def stop(self) -> None:
        """Not ready any more, and ends all watches, so that they do not hold up a graceful stop."""
        self._stopping = True
        self.set_ready(False)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answers for one service; NOT_FOUND where it is unknown, as grpc.health.v1 asks."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Streams the status of one service whenever it changes."""
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self._stopping:
                return
            await changed.wait()

    def _status(self, service: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if service == LIVENESS:
            return int(statuses.SERVING)
        if service not in self._services:
            return int(statuses.SERVICE_UNKNOWN)
        return int(statuses.SERVING if self._ready else statuses.NOT_SERVING)

    def _wake(self) -> None:
        # A fresh event for those who come later; everyone who waits holds the old one.
        self._changed.set()
        self._changed = asyncio.Event()


class HealthPort:
    """A further port, in the clear, that answers grpc.health.v1 and nothing else: Kubernetes' probes show no certificate.

    Args:
        health: what it answers.
        host: to listen on.
        port: None: there is no such port.
    """

    def __init__(self, health: LiveReadyHealth, host: str, port: int | None) -> None:
        self._health = health
        self._host = host
        self._port = port
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Opens it. Raises `OSError`."""
        if self._port is None:
            return
        options = {**dict(SERVER_OPTIONS), "grpc.max_receive_message_length": _PROBE_BYTES_MAX}
        self._server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=_PROBES_MAX)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        bind(self._server, self._host, self._port)
        await self._server.start()

    async def stop(self) -> None:
        """Closes it; may be called twice."""
        if self._server is not None:
            await self._server.stop(0)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: errors.VectorfleetError, request_id: str = ""
) -> NoReturn:
    """Ends a call with an error, as its caller reads it; the message is cut to what trailers carry."""
    message = error.message.encode()
    if len(message) > _MESSAGE_BYTES_MAX:
        short = message[:_MESSAGE_BYTES_MAX].decode(errors="ignore") + "…"
        error = errors.error_for(error.reason, short, field=error.field, retry_after_s=error.retry_after_s)
    told: tuple[tuple[str, str | bytes], ...] = errors.trailing_metadata(error, request_id)
    if request_id:
        told = (*told, (REQUEST_ID, request_id))
    await context.abort(error.code, error.message, trailing_metadata=told)
    raise AssertionError("abort raises")


def told(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[str, str]:
    """Code and reason of a call that was aborted, as its caller sees them."""
    for name, value in context.trailing_metadata() or ():
        if name == errors.DETAILS_KEY:
            error = errors.from_status(status_pb2.Status.FromString(value))
            return error.code.name, error.reason
    return str(getattr(context.code(), "name", "UNKNOWN")), ""


def as_vectorfleet_error(error: Exception, method: str) -> errors.VectorfleetError:
    """What a caller of `method` is told of an exception; a defect is logged, and only named to the caller."""
    if isinstance(error, errors.VectorfleetError):
        return error
    if isinstance(error, grpc.RpcError):
        return errors.from_rpc_error(error)
    if isinstance(error, TimeoutError):
        return errors.DeadlineExceeded("the deadline passed")
    _log.error("%s failed", method, exc_info=error)
    return errors.InternalError(f"{type(error).__name__} in {method}; the server's log says more")


class _Malformed:
    """Stands in for a request that did not parse, until a handler's guard can answer for it."""

    def __init__(self, error: errors.InvalidRequest) -> None:
        self.error = error


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    # gRPC answers a failing deserializer with UNKNOWN; ours must say INVALID_ARGUMENT and the field at fault.
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    if deserialize is None or descriptor is None:
        return deserialize

    def parse(data: bytes) -> Any:
        crowded = malformed.crowded(data)
        if crowded is not None:
            return _Malformed(crowded)
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed(malformed.explain(descriptor, data))

    return parse


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _sound(request)


def _sound(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise request.error
    return _checked(request) if hasattr(request, "__aiter__") else request


def _guarded(handle: Callable[..., Awaitable[Any]], method: str, telemetry: Telemetry) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        work = _begun(method, context, telemetry)
        reason = "CANCELLED"
        try:
            response = await handle(_sound(request), context)
            reason = ""
            return response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            known = as_vectorfleet_error(error, method)
            reason = known.reason
            await abort(context, known, work.request_id)
        finally:
            telemetry.end(work, reason)

    return call


def _guarded_stream(
    handle: Callable[..., AsyncIterator[Any]], method: str, telemetry: Telemetry
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        work = _begun(method, context, telemetry)
        reason = "CANCELLED"
        try:
            async for response in handle(_sound(request), context):
                yield response
            reason = ""
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            known = as_vectorfleet_error(error, method)
            reason = known.reason
            await abort(context, known, work.request_id)
        finally:
            telemetry.end(work, reason)

    return call


def _begun(method: str, context: grpc.aio.ServicerContext[Any, Any], telemetry: Telemetry) -> Work:
    """Begins the work of a call, which has a task of its own."""
    work = telemetry.begin(method, context.invocation_metadata())
    context.set_trailing_metadata(((REQUEST_ID, work.request_id),))
    enter(work)
    return work
