"""From a call's metadata to its slow-query line and its spans."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vectorfleet.metrics import Calls, Metrics
from vectorfleet.telemetry import tracing
from vectorfleet.telemetry.options import add_telemetry_arguments
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.telemetry.slow import LINES_BURST, SlowQueries
from vectorfleet.telemetry.tracing import RATIO_DEFAULT, Sampling, Tracing, sampling_of, wanted
from vectorfleet.telemetry.work import Work, shared

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METHOD = "/vectorfleet.v1.SearchService/Search"


def parent(sampled: bool) -> list[tuple[str, str | bytes]]:
    return [("traceparent", f"00-{TRACE}-{SPAN}-0{int(sampled)}"), ("x-request-id", "mine")]


def traced(ratio: float = 1.0, slow_ms: float = 0, **sampling: bool) -> tuple[Telemetry, InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    made = Tracing(SimpleSpanProcessor(memory), {"service.name": "test"})
    return Telemetry(slow=SlowQueries(slow_ms), sampling=Sampling(ratio, **sampling), tracing=made), memory


def by_name(memory: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in memory.get_finished_spans()}


def ids(span: Any) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def test_a_call_gets_the_request_id_that_it_brings_or_one_of_its_own() -> None:
    telemetry = Telemetry()
    assert telemetry.begin(METHOD, parent(True)).request_id == "mine"
    made = [telemetry.begin(METHOD, metadata).request_id for metadata in (None, [("x-request-id", "\n")], [])]
    assert len(set(made)) == 3
    assert all(made)


def test_a_context_passes_through_a_process_that_traces_nothing() -> None:
    work = Telemetry().begin(METHOD, parent(True))
    assert work.outgoing == (("x-request-id", "mine"), ("traceparent", f"00-{TRACE}-{SPAN}-01"))


def test_stages_and_parts_become_spans_within_the_callers_trace() -> None:
    telemetry, memory = traced()
    work = telemetry.begin(METHOD, parent(True))
    work.lap("validate")
    with work.part("node", calls_out=True) as node:
        node.facts["node"] = "node-1"
        (_, travelling) = node.outgoing
    work.part("shard").end("DATA_LOSS")
    telemetry.end(work)
    spans = by_name(memory)
    root = spans["vectorfleet.v1.SearchService/Search"]
    assert root.parent is not None
    assert (root.parent.trace_id, root.parent.span_id, root.parent.is_remote) == (int(TRACE, 16), int(SPAN, 16), True)
    for name in ("validate", "node", "shard"):
        child = spans[name]
        assert child.parent is not None
        assert (child.parent.trace_id, child.parent.span_id) == ids(root)
        assert child.start_time is not None
        assert child.end_time is not None
        assert root.start_time is not None
        assert root.end_time is not None
        assert root.start_time <= child.start_time <= child.end_time <= root.end_time
    assert travelling == ("traceparent", f"00-{TRACE}-{spans['node'].context.span_id:016x}-01")
    assert spans["shard"].status.description == "DATA_LOSS"
    assert (spans["node"].attributes or {})["vectorfleet.node"] == "node-1"


def test_a_shared_part_is_in_each_trace_and_linked() -> None:
    telemetry, memory = traced()
    first, second = (telemetry.begin(METHOD, None) for _ in range(2))
    untraced = Work("call", "r")
    with shared("batch", [untraced, first, second]) as batch:
        batch.part("node", calls_out=True).end()
        batch.lap("merge")
    for work in (first, second):
        telemetry.end(work)
    traces: dict[int, dict[str, ReadableSpan]] = {}
    for span in memory.get_finished_spans():
        traces.setdefault(span.context.trace_id, {})[span.name] = span
    assert len(traces) == 2
    assert first.span is not None
    led, copied = traces.pop(int(first.span.trace_id, 16)), *traces.values()
    for one in (led, copied):
        assert set(one) == {"vectorfleet.v1.SearchService/Search", "batch", "node", "merge"}
        parent_of_batch, parent_of_node = one["batch"].parent, one["node"].parent
        assert parent_of_batch is not None
        assert parent_of_node is not None
        assert parent_of_batch.span_id == one["vectorfleet.v1.SearchService/Search"].context.span_id
        assert parent_of_node.span_id == one["batch"].context.span_id
    assert [ids(link) for link in led["batch"].links] == [ids(copied["vectorfleet.v1.SearchService/Search"])]
    assert [ids(link) for link in copied["batch"].links] == [ids(led["batch"])]
    assert [ids(link) for link in copied["node"].links] == [ids(led["node"])]


@pytest.mark.parametrize(
    ("ratio", "follow", "entry", "caller", "expected"),
    [
        (1.0, True, True, None, True),
        (0.0, True, True, None, False),
        (0.0, True, True, True, True),
        (1.0, True, True, False, False),
        (0.0, False, True, True, False),
        (1.0, True, False, None, False),
        (1.0, True, False, True, True),
        (0.0, False, False, True, True),
    ],
)
def test_who_decides_whether_a_call_is_traced(
    ratio: float, follow: bool, entry: bool, caller: bool | None, expected: bool
) -> None:
    telemetry, _ = traced(ratio, follow_parent=follow, entry=entry)
    work = telemetry.begin(METHOD, None if caller is None else parent(caller))
    assert (work.span is not None) is expected


def test_a_slow_query_has_a_line_and_a_trace_though_it_was_not_sampled(caplog: pytest.LogCaptureFixture) -> None:
    telemetry, memory = traced(0.0, slow_ms=1e-9)
    work = telemetry.begin(METHOD, None)
    work.facts.update(collection="films", k=3)
    work.lap("validate")
    with caplog.at_level(logging.WARNING):
        telemetry.end(work)
    (told,) = telemetry.slow.recent
    root = by_name(memory)["vectorfleet.v1.SearchService/Search"]
    assert told["trace_id"] == f"{root.context.trace_id:032x}"
    assert (told["collection"], told["k"], told["request_id"]) == ("films", 3, work.request_id)
    assert [record.message for record in caplog.records] == ["slow query"]


def test_what_is_not_slow_or_no_query_has_no_line() -> None:
    telemetry, memory = traced(0.0, slow_ms=1e9)
    work = telemetry.begin(METHOD, None)
    work.facts["collection"] = "films"
    telemetry.end(work)
    telemetry.slow.set_threshold(1e-9)
    telemetry.end(telemetry.begin("/grpc.health.v1.Health/Check", None))
    for write in ("/vectorfleet.v1.PointService/BulkUpsert", "/vectorfleet.internal.v1.ShardService/Write"):
        load = telemetry.begin(write, None)
        load.facts["collection"] = "films"
        telemetry.end(load)
    telemetry.slow.set_threshold(0)
    again = telemetry.begin(METHOD, None)
    again.facts["collection"] = "films"
    telemetry.end(again)
    assert telemetry.slow.recent == []
    assert memory.get_finished_spans() == ()


def test_many_slow_queries_make_few_lines_and_say_how_many_are_missing() -> None:
    now = [0.0]
    slow = SlowQueries(1.0, clock=lambda: now[0])
    admitted = 0
    for _ in range(1000):
        if slow.admits():
            admitted += 1
            slow.tell(Work("call"))
    assert admitted == LINES_BURST
    now[0] = 1.0
    assert slow.admits()
    slow.tell(Work("call"))
    assert slow.recent[-1]["left_out_before"] == 1000 - LINES_BURST


@pytest.mark.parametrize(
    ("environment", "ratio", "follow"),
    [
        ({}, RATIO_DEFAULT, True),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, 1.0, True),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, 0.5, True),
    ],
)
def test_the_standard_variables_decide_about_sampling(environment: dict[str, str], ratio: float, follow: bool) -> None:
    sampling = sampling_of(environment, entry=True)
    assert (sampling.ratio, sampling.follow_parent) == (ratio, follow)


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, {"OTEL_TRACES_SAMPLER_ARG": "2"}, {"OTEL_TRACES_SAMPLER_ARG": "nan"}],
)
def test_a_sampler_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"OTEL_TRACES_SAMPLER|share"):
        sampling_of(environment, entry=True)


def test_the_standard_variables_ask_for_an_exporter_or_forbid_it() -> None:
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}
    assert wanted(there)
    assert wanted({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"})
    assert wanted({"OTEL_TRACES_EXPORTER": "otlp"})
    assert not wanted({})
    assert not wanted(there | {"OTEL_SDK_DISABLED": "true"})
    assert not wanted(there | {"OTEL_TRACES_EXPORTER": "none"})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--slow-query-ms", "-1"], "no number of milliseconds"),
        (["--slow-query-ms", "nan"], "no number of milliseconds"),
        (["--trace-ratio", "1.5"], "no share"),
        (["--log-format", "xml"], "none of human, json"),
        (["--log-level", "loud"], "none of debug"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_telemetry_arguments(parser, {})
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert complaint in capsys.readouterr().err


def test_a_slow_query_is_an_example_of_its_latency() -> None:
    metrics = Metrics("router", enabled=True)
    telemetry, _ = traced(0.0, slow_ms=1e-9)
    calls = Calls(metrics)

    def count(work: Work) -> None:
        calls.ended(work)

    telemetry.observe(count)
    work = telemetry.begin(METHOD, None)
    work.facts["collection"] = "films"
    telemetry.end(work)
    assert work.span is not None
    text, _ = metrics.text("application/openmetrics-text; version=1.0.0")
    assert f'# {{trace_id="{work.span.trace_id}"}}' in text.decode()
    assert "trace_id" not in metrics.text()[0].decode(), "the older format has none"


def test_spans_follow_a_step_of_the_wall_clock_and_no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry, memory = traced()
    for offset_ns in (10**18, 10**18 + 500_000, 2 * 10**18):
        monkeypatch.setattr(tracing, "_epoch_offset_ns", lambda offset_ns=offset_ns: offset_ns)
        telemetry.end(telemetry.begin(METHOD, None))
    begun = [(span.start_time or 0) // 10**15 for span in memory.get_finished_spans()]
    assert begun == [1000, 1000, 2000]
