"""`traces`: prints the traces that the processes of a cluster on this machine send, without a collector."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from typing import Final

import click

from vectorfleet.cli.output import printable, shorten
from vectorfleet.telemetry.receiver import OtlpReceiver, ReceivedSpan, tree

QUIET_S: Final = 6.0
"""Processes send every five seconds: a trace that has been quiet for longer is whole."""
TRACES_MAX: Final = 1_000
SPANS_MAX: Final = 10_000
_STEP_S: Final = 0.5
_NAME_WIDTH: Final = 44


@click.command()
@click.option("--listen", default="127.0.0.1:4317", show_default=True, metavar="HOST:PORT", help="Where to listen.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many traces.")
def traces(listen: str, count: int | None) -> None:
    """Print the traces that come here, each as a tree with its times.

    Start the cluster with `--otlp-endpoint http://127.0.0.1:4317` (or OTEL_EXPORTER_OTLP_ENDPOINT). Ctrl-C ends it.
    """
    came: queue.Queue[ReceivedSpan] = queue.Queue(SPANS_MAX)

    def take(spans: Sequence[ReceivedSpan]) -> None:
        for span in spans:
            try:
                came.put_nowait(span)
            except queue.Full:
                return  # whoever sends must not wait for whoever reads

    try:
        receiver = OtlpReceiver(take, listen)
        address = receiver.start()
    except ImportError as error:
        raise click.ClickException("traces need OpenTelemetry: pip install 'vectorfleet[otel]'") from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"listens for OTLP over gRPC on {address}", err=True)
    try:
        _print_traces(came, count)
    finally:
        receiver.stop()


def _print_traces(came: queue.Queue[ReceivedSpan], count: int | None) -> None:
    open_ones: dict[str, tuple[float, list[ReceivedSpan]]] = {}
    printed = 0
    while count is None or printed < count:
        try:
            span = came.get(timeout=_STEP_S)
        except queue.Empty:
            pass
        else:
            _, spans = open_ones.get(span.trace_id, (0.0, []))
            open_ones[span.trace_id] = time.monotonic(), [*spans, span]
        quiet_since_s = time.monotonic() - QUIET_S
        for trace_id, (last_s, spans) in list(open_ones.items()):
            if last_s < quiet_since_s or len(open_ones) > TRACES_MAX:
                del open_ones[trace_id]
                for line in lines_of(spans):
                    click.echo(line)
                printed += 1


def lines_of(spans: Sequence[ReceivedSpan]) -> list[str]:
    """Writes one trace: when each span began, how long it took, where and what it was."""
    rows = tree(spans)
    origin_ns = min(span.begun_ns for span in spans)
    lines = [f"trace {spans[0].trace_id}: {len(spans)} spans", f"{'BEGAN MS':>9} {'TOOK MS':>9}  SPAN"]
    for depth, span in rows:
        facts = " ".join(
            f"{name.removeprefix('vectorfleet.')}={value}"
            for name, value in sorted(span.facts.items())
            if name.startswith("vectorfleet.") and name != "vectorfleet.request_id"
        )
        error = f" FAILED: {span.error}" if span.error else ""
        linked = f" (linked to {len(span.links)})" if span.links else ""
        where = span.instance if span.service.startswith("vectorfleet-") else span.service
        name = "  " * depth + shorten(span.name.removeprefix("vectorfleet."), max(8, _NAME_WIDTH - 2 * depth))
        began_ms, took_ms = (span.begun_ns - origin_ns) / 1e6, (span.ended_ns - span.begun_ns) / 1e6
        line = f"{began_ms:9.3f} {took_ms:9.3f}  {name:<{_NAME_WIDTH}} {where:<9} {facts}{linked}{error}"
        lines.append(printable(line.rstrip()))
    return [*lines, ""]
