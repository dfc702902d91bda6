"""A receiver of OTLP traces over gRPC, for one machine: it keeps nothing, and hands on what comes. Not a collector.

Needs `vectorfleet[otel]`, whose messages it speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import grpc

METHOD_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
_MESSAGE_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it came."""

    trace_id: str
    span_id: str
    parent_id: str
    """"": a root."""
    name: str
    service: str
    instance: str
    begun_ns: int
    ended_ns: int
    error: str
    facts: Mapping[str, str]
    """Attributes, as text."""
    links: tuple[tuple[str, str], ...]
    """(trace, span)."""


class OtlpReceiver:
    """Listens from `start` to `stop`."""

    def __init__(self, on_spans: Callable[[Sequence[ReceivedSpan]], None], address: str = "127.0.0.1:0") -> None:
        """Listens nowhere yet.

        Args:
            on_spans: is given each batch, in threads of the server.
            address: host:port; port 0: a free one.

        Raises:
            ImportError: OpenTelemetry's messages are not installed.
        """
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

        def export(request: Any, context: grpc.ServicerContext) -> Any:
            on_spans(list(_spans(request)))
            return otlp.ExportTraceServiceResponse()

        handler = grpc.unary_unary_rpc_method_handler(
            export,
            otlp.ExportTraceServiceRequest.FromString,
            otlp.ExportTraceServiceResponse.SerializeToString,
        )
        self._server = grpc.server(
            ThreadPoolExecutor(2, "otlp"), options=[("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)]
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(METHOD_SERVICE, {"Export": handler}),)
        )
        self._wanted = address

    def start(self) -> str:
        """Begins to listen; returns host:port. Raises `OSError`."""
        try:
            port = self._server.add_insecure_port(self._wanted)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._wanted}: {error}") from error
        self._server.start()
        return f"{self._wanted.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Stops, and returns when nobody is heard any more."""
        self._server.stop(0).wait()


def _spans(request: Any) -> Any:
    for of_process in request.resource_spans:
        process = _plain(of_process.resource.attributes)
        for scope in of_process.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    service=process.get("service.name", ""),
                    instance=process.get("service.instance.id", ""),
                    begun_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                    error=(span.status.message or "error") if span.status.code == 2 else "",  # STATUS_CODE_ERROR
                    facts=_plain(span.attributes),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def _plain(attributes: Any) -> dict[str, str]:
    return {one.key: str(getattr(one.value, one.value.WhichOneof("value") or "string_value")) for one in attributes}


def tree(spans: Sequence[ReceivedSpan]) -> list[tuple[int, ReceivedSpan]]:
    """The spans of one trace, each with its depth: parents before children, in the order in which they began.

    A span whose parent did not come stands at the top.
    """
    known = {span.span_id for span in spans}
    below: dict[str, list[ReceivedSpan]] = {}
    for span in sorted(spans, key=lambda one: (one.begun_ns, -one.ended_ns)):
        below.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    found: list[tuple[int, ReceivedSpan]] = []
    waiting = [(0, span) for span in reversed(below.pop("", []))]
    while waiting:
        depth, span = waiting.pop()
        found.append((depth, span))
        waiting.extend((depth + 1, child) for child in reversed(below.pop(span.span_id, [])))
    return found
