"""Traces of calls through OpenTelemetry: which calls are traced, and the spans that their `Work` becomes. The only module of the
servers that knows OpenTelemetry, which it imports where an exporter was asked for and not before.

Sampling is decided here, by one comparison, before OpenTelemetry is touched: its own sampler and context cost tens of
microseconds a call. Spans are made of a work when it ends; only a call to another process has its span earlier, since its
id travels.

A shared part has its spans in one trace, whose caller was first. The traces of the others get a copy of it that links there, so
that each shows all stages of its own call.

The exporter has a bounded queue and a thread of its own: a collector that is away, slow or hanging costs spans, never a call.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from vectorfleet._version import __version__
from vectorfleet.telemetry.context import TraceContext
from vectorfleet.telemetry.work import Metadata, Work

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span as OtelSpan

RATIO_DEFAULT: Final = 0.01
CLOSE_S: Final = 2.0
"""How long the last spans may take to leave when the process stops."""
_STEP_NS: Final = 1_000_000
_HTTP: Final = "http/protobuf"

_log = logging.getLogger(__name__)


class Sampling:
    """Which calls are traced. May be changed while it is in use."""

    def __init__(self, ratio: float, *, follow_parent: bool = True, entry: bool = True) -> None:
        """Says which.

        Args:
            ratio: 0 to 1: of calls that nobody has decided about.
            follow_parent: a caller that brings a trace context has decided.
            entry: whether calls come here from outside; otherwise a call without a context is of one that is not traced.
        """
        self.ratio = ratio
        self.follow_parent = follow_parent
        self._entry = entry

    def wants(self, parent: TraceContext | None) -> bool:
        """Decides about one call."""
        if parent is not None and (self.follow_parent or not self._entry):
            return parent.sampled
        return self._entry and random.random() < self.ratio  # noqa: S311 (no secret)


def sampling_of(environment: Mapping[str, str], *, entry: bool) -> Sampling:
    """Reads OTEL_TRACES_SAMPLER and its argument; where they are absent: one call of a hundred, or as its caller decided.

    Raises:
        ValueError: they make no sense.
    """
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_traceidratio"
    kind = name.removeprefix("parentbased_")
    if kind not in ("always_on", "always_off", "traceidratio"):
        raise ValueError(
            f"OTEL_TRACES_SAMPLER={name}: always_on, always_off, traceidratio are known, and parentbased_…"
        )
    if kind == "traceidratio":
        fallback = str(RATIO_DEFAULT) if "OTEL_TRACES_SAMPLER" not in environment else "1"
        ratio = ratio_of(environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or fallback)
    else:
        ratio = float(kind == "always_on")
    return Sampling(ratio, follow_parent=name.startswith("parentbased_"), entry=entry)


def ratio_of(value: str) -> float:
    """Reads a share, 0 to 1; raises `ValueError`."""
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{value!r} is no share of the calls, 0 to 1")
    return ratio


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for an exporter."""
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return not off and any(
        environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") or environment.get("OTEL_TRACES_EXPORTER") == "otlp"
        for part in ("", "TRACES_")
    )


class Tracing:
    """The spans of one process."""

    def __init__(self, processor: SpanProcessor, resource: Mapping[str, str]) -> None:
        """Begins to export.

        Args:
            processor: takes spans that have ended.
            resource: attributes of the process.

        Raises:
            ImportError: OpenTelemetry is not installed.
        """
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._api = trace
        # Whoever comes as far as this is traced: `Sampling` has decided.
        self._provider: TracerProvider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(dict(resource)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vectorfleet", __version__)
        self._offset_ns = _epoch_offset_ns()

    def begin(self, work: Work, parent: TraceContext | None) -> None:
        """Begins the span of a call that came in."""
        self._follow_clock()
        work.span = self._span(work, None if parent is None else self._remote(parent), self._api.SpanKind.SERVER)

    def tell(self, work: Work, parent: TraceContext | None) -> None:
        """Makes a trace of a call that has ended and was not traced: it turned out to be of interest."""
        self.begin(work, parent)
        assert work.span is not None
        work.span.finish(work)

    def close(self) -> None:
        """Sends what is left, for at most `CLOSE_S`."""
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _remote(self, parent: TraceContext) -> OtelSpan:
        api = self._api
        state = api.TraceState.from_header([parent.state]) if parent.state else None
        flags = api.TraceFlags(api.TraceFlags.SAMPLED if parent.sampled else api.TraceFlags.DEFAULT)
        ids = int(parent.trace_id, 16), int(parent.span_id, 16)
        span: OtelSpan = api.NonRecordingSpan(
            api.SpanContext(*ids, is_remote=True, trace_flags=flags, trace_state=state)
        )
        return span

    def _span(self, work: Work, parent: OtelSpan | None, kind: Any, links: Sequence[OtelSpan] = ()) -> _TracedSpan:
        return _TracedSpan(self, self.start(work.name, parent, work.begun_ns, kind, links))

    def start(
        self, name: str, parent: OtelSpan | None, begun_ns: int, kind: Any = None, links: Sequence[OtelSpan] = ()
    ) -> OtelSpan:
        """Starts a span of OpenTelemetry's."""
        api = self._api
        from opentelemetry.context import Context

        started: OtelSpan = self._tracer.start_span(
            name,
            # An empty context, not none: otherwise it would look for a current span.
            context=Context() if parent is None else api.set_span_in_context(parent, Context()),
            kind=kind or api.SpanKind.INTERNAL,
            links=[api.Link(link.get_span_context()) for link in links],
            start_time=self.epoch_ns(begun_ns),
        )
        return started

    def child(self, parent: OtelSpan, work: Work, links: Sequence[OtelSpan]) -> _TracedSpan:
        """Starts the span of a part."""
        kind = self._api.SpanKind.CLIENT if work.calls_out else self._api.SpanKind.INTERNAL
        return self._span(work, parent, kind, links)

    def write(self, work: Work, span: OtelSpan) -> None:
        """Ends a work's span, with those of its stages and of the parts that are not of the same trace."""
        trace_id = span.get_span_context().trace_id
        for stage, begun_ns, ended_ns in work.stages:
            self.start(stage, span, begun_ns).end(self.epoch_ns(ended_ns))
        for part in work.parts:
            theirs = part.span.otel.get_span_context() if isinstance(part.span, _TracedSpan) else None
            if theirs is None or theirs.trace_id != trace_id:
                links = [part.span.otel] if isinstance(part.span, _TracedSpan) else []
                self.write(part, self.child(span, part, links).otel)
        for name, value in work.facts.items():
            plain = value if isinstance(value, bool | int | float | str) else str(value)
            span.set_attribute(f"vectorfleet.{name}", plain)
        if work.request_id:
            span.set_attribute("vectorfleet.request_id", work.request_id)
        if work.error:
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, work.error))
        span.end(self.epoch_ns(work.ended_ns or time.monotonic_ns()))

    def epoch_ns(self, monotonic_ns: int) -> int:
        """A moment of the monotonic clock as the wall clock has it: one offset for all, so that spans nest as the works did."""
        return monotonic_ns + self._offset_ns

    def _follow_clock(self) -> None:
        """Takes a step of the wall clock over; between steps the offset stays, since reading it is not exact."""
        offset_ns = _epoch_offset_ns()
        if abs(offset_ns - self._offset_ns) > _STEP_NS:
            self._offset_ns = offset_ns


class _TracedSpan:
    """A span that exists before its work has ended; `work.Span`."""

    __slots__ = ("_tracing", "otel")

    def __init__(self, tracing: Tracing, otel: OtelSpan) -> None:
        self._tracing = tracing
        self.otel = otel

    @property
    def trace_id(self) -> str:
        return format(self.otel.get_span_context().trace_id, "032x")

    @property
    def headers(self) -> Metadata:
        context = self.otel.get_span_context()
        state = context.trace_state.to_header() if context.trace_state else ""
        return TraceContext(self.trace_id, format(context.span_id, "016x"), True, state).headers

    def child(self, work: Work, shared_with: Sequence[Any]) -> _TracedSpan:
        return self._tracing.child(self.otel, work, [span.otel for span in shared_with])

    def finish(self, work: Work) -> None:
        self._tracing.write(work, self.otel)


def otlp_processor(environment: Mapping[str, str], endpoint: str) -> SpanProcessor:
    """Makes what sends spans to a collector. All that is not given here OpenTelemetry reads from its own variables.

    Args:
        environment: OTEL_EXPORTER_OTLP_PROTOCOL: grpc, which is the default, or http/protobuf.
        endpoint: a URL; "": of the environment.

    Raises:
        ImportError: OpenTelemetry, or the exporter, is not installed.
        ValueError: the protocol is not known.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    exporter: SpanExporter
    if protocol in (None, "", "grpc"):
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc

        exporter = over_grpc.OTLPSpanExporter(endpoint=endpoint or None)
    elif protocol == _HTTP:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http

        exporter = over_http.OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    else:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: grpc and {_HTTP} are known")
    return BatchSpanProcessor(exporter)


def _epoch_offset_ns() -> int:
    """Wall clock less monotonic clock: of several readings the one that was interrupted least."""
    readings = []
    for _ in range(5):
        before_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        readings.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
    return min(readings)[1]
