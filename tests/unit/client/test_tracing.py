"""A client's spans in the traces of the program around it, with OpenTelemetry's own SDK; and none without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from vectorfleet import _tracing as tracing
from vectorfleet.errors import NotFound

SEARCH = "vectorfleet search"
CALL = "vectorfleet.v1.SearchService/Search"


class Program:
    """A program that traces; `sent` is the metadata of its calls."""

    def __init__(self, memory: InMemorySpanExporter) -> None:
        self._memory = memory
        self.sent: list[Any] = []
        self.error: Exception | None = None
        self.call = tracing._Calls(CALL, self._answer)

    def _answer(self, request: Any, timeout: float, metadata: Any = None) -> str:
        self.sent.append(metadata)
        if self.error is not None:
            raise self.error
        return "answer"

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name == name]


@pytest.fixture(params=[True])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_ON if request.param else ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield Program(memory)
    provider.shutdown()


def context(span: Any) -> Any:
    return span.get_span_context() if hasattr(span, "get_span_context") else span.context


def test_a_call_is_a_span_below_its_search_and_carries_its_context(program: Program) -> None:
    with tracing.searching(), tracing.sharing([None]):
        assert program.call("question", timeout=1.0) == "answer"
    (search,), (call,) = program.spans(SEARCH), program.spans(CALL)
    assert call.parent is not None
    assert call.parent.span_id == search.context.span_id
    assert program.sent == [(("traceparent", f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-01"),)]


def test_searches_that_share_a_call_all_show_it(program: Program) -> None:
    first, second = tracing.searching(), tracing.searching()
    assert isinstance(first, tracing.CallSpan)
    assert isinstance(second, tracing.CallSpan)
    with tracing.sharing([first, second]):
        program.call("question", timeout=1.0)
    first.end()
    second.end()
    (call,), (copy,) = program.spans(CALL), program.spans("shared call")
    searches = {span.context.trace_id: span for span in program.spans(SEARCH)}
    assert len(searches) == 2
    for span, other in ((call, copy), (copy, call)):
        assert span.parent is not None
        assert span.parent.span_id == searches[span.context.trace_id].context.span_id
        assert other.context.trace_id != span.context.trace_id
    assert [link.context.span_id for link in copy.links] == [call.context.span_id]
    assert [link.context.span_id for link in call.links] == [searches[copy.context.trace_id].context.span_id]
    assert copy.start_time == call.start_time


def test_a_call_that_failed_says_why(program: Program) -> None:
    program.error = NotFound("no such collection")
    program.error.request_id = "r-1"  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        program.call("question", timeout=1.0)
    (call,) = program.spans(CALL)
    assert call.status.description == "COLLECTION_NOT_FOUND"
    assert (call.attributes or {})["vectorfleet.request_id"] == "r-1"


@pytest.mark.parametrize("program", [False], indirect=True)
def test_a_program_that_samples_nothing_says_so_to_the_router(program: Program) -> None:
    with tracing.searching() as one, tracing.sharing([one]) as shared:
        assert shared is None
        program.call("question", timeout=1.0)
    assert program.spans(CALL) == []
    ((parent,),) = program.sent
    assert parent[1].endswith("-00")


def test_a_program_without_opentelemetry_pays_nothing(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    with tracing.searching() as one:
        assert one is None
        program.call("question", timeout=1.0)
    assert program.sent == [None]
    assert program.spans(SEARCH) == []
