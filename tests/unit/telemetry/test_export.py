"""Spans over the wire, in both of OTLP's forms, to something that speaks the real protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from vectorfleet.telemetry.receiver import OtlpReceiver, ReceivedSpan, tree
from vectorfleet.telemetry.tracing import Tracing, otlp_processor
from vectorfleet.telemetry.work import Work


@contextmanager
def http_receiver(names: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            names.extend(
                f"{self.path} {span.name}" for r in request.resource_spans for s in r.scope_spans for span in s.spans
            )
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_receiver(names: list[str]) -> Iterator[str]:
    receiver = OtlpReceiver(lambda spans: names.extend(f"/v1/traces {span.name}" for span in spans))
    try:
        yield f"http://{receiver.start()}"
    finally:
        receiver.stop()


@pytest.mark.parametrize(
    ("environment", "receiver"),
    [({}, grpc_receiver), ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, http_receiver)],
    ids=["grpc", "http"],
)
def test_the_last_spans_leave_when_the_process_stops(environment: dict[str, str], receiver: Any) -> None:
    names: list[str] = []
    with receiver(names) as endpoint:
        tracing = Tracing(otlp_processor(environment, endpoint), {"service.name": "test"})
        work = Work("call", "r")
        tracing.begin(work, None)
        work.lap("stage")
        work.end()
        tracing.close()
    assert sorted(names) == ["/v1/traces call", "/v1/traces stage"]


def test_a_protocol_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="grpc and http/protobuf are known"):
        otlp_processor({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http://127.0.0.1:1")


def span(span_id: str, parent_id: str, begun_ns: int) -> ReceivedSpan:
    return ReceivedSpan("t", span_id, parent_id, span_id, "s", "i", begun_ns, begun_ns + 1, "", {}, ())


def test_a_tree_has_parents_first_and_loses_no_span() -> None:
    spans = [span("c", "b", 3), span("d", "lost", 0), span("b", "a", 2), span("e", "a", 1), span("a", "", 1)]
    assert [(depth, one.name) for depth, one in tree(spans)] == [(0, "d"), (0, "a"), (1, "e"), (1, "b"), (2, "c")]
