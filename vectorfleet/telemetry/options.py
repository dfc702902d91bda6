"""The command-line options of logs, slow queries and traces, which router and shard server have in common.

Each has an environment variable of the same name (`--log-format` = VECTORFLEET_LOG_FORMAT); the argument wins. Whatever else
OpenTelemetry can be told it reads from its own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES, …).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Final

from vectorfleet._version import __version__
from vectorfleet.telemetry.configuration import shown
from vectorfleet.telemetry.logs import FORMATS, LEVELS, Logs
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.telemetry.slow import THRESHOLD_DEFAULT_MS, SlowQueries
from vectorfleet.telemetry.tracing import RATIO_DEFAULT, Tracing, otlp_processor, ratio_of, sampling_of, wanted

THRESHOLD_MAX_MS: Final = 1e9

_log = logging.getLogger(__name__)


def add_telemetry_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Adds them, with defaults from the environment."""
    group = parser.add_argument_group("logs and traces")

    def add(name: str, text: str, metavar: str, convert: Callable[[str], object], fallback: object) -> None:
        variable = f"VECTORFLEET_{name.upper().replace('-', '_')}"
        default = environment.get(variable, fallback)
        group.add_argument(f"--{name}", metavar=metavar, type=convert, default=default, help=f"{text} [env {variable}]")

    add("log-level", f"one of {', '.join(LEVELS)} (default info)", "LEVEL", _one_of(LEVELS), "info")
    add("log-format", f"one of {', '.join(FORMATS)} (default human)", "FORMAT", _one_of(FORMATS), "human")
    add(
        "slow-query-ms",
        f"log searches and reads that took at least so long; 0: none (default {THRESHOLD_DEFAULT_MS:g})",
        "MS",
        _milliseconds,
        THRESHOLD_DEFAULT_MS,
    )
    add(
        "otlp-endpoint",
        "URL of an OpenTelemetry collector that gets traces, or OTEL_EXPORTER_OTLP_ENDPOINT; needs vectorfleet[otel]",
        "URL",
        str,
        "",
    )
    add(
        "trace-ratio",
        f"share of the calls that are traced, 0 to 1; or OTEL_TRACES_SAMPLER (default {RATIO_DEFAULT})",
        "SHARE",
        _ratio,
        None,
    )


def start_logs(arguments: argparse.Namespace) -> Logs:
    """Lets the process log to stderr as its arguments say."""
    logs = Logs(sys.stderr, form=arguments.log_format, level=arguments.log_level)
    logs.start()
    return logs


def telemetry_of(
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    logs: Logs,
    *,
    service: str,
    instance: str,
    entry: bool,
) -> Telemetry:
    """Makes what the arguments describe. A process whose traces cannot be exported says so, and runs.

    Args:
        arguments: of `add_telemetry_arguments`.
        environment: OpenTelemetry's variables.
        logs: of `start_logs`.
        service: what kind of process it is, as traces name it.
        instance: which one of them.
        entry: whether calls from outside the cluster come to it.

    Raises:
        ValueError: an argument or a variable makes no sense.
    """
    sampling = sampling_of(environment, entry=entry)
    if arguments.trace_ratio is not None:
        sampling.ratio = arguments.trace_ratio
    tracing = None
    if arguments.otlp_endpoint or wanted(environment):
        resource = {"service.instance.id": instance, "service.version": __version__}
        if not environment.get("OTEL_SERVICE_NAME"):
            resource["service.name"] = service
        try:
            tracing = Tracing(otlp_processor(environment, arguments.otlp_endpoint), resource)
        except ImportError as error:
            _log.warning("no traces: %s; pip install 'vectorfleet[otel]'", error)
    return Telemetry(
        logs=logs,
        slow=SlowQueries(arguments.slow_query_ms),
        sampling=sampling,
        tracing=tracing,
        configuration=shown(vars(arguments)),
    )


def threshold_of(value: str) -> float:
    """Reads milliseconds; raises `ValueError`."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= THRESHOLD_MAX_MS:
        raise ValueError(f"{value!r} is no number of milliseconds of at least 0")
    return number


def _one_of(values: tuple[str, ...]) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value not in values:
            raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(values)}")
        return value

    return convert


def _milliseconds(value: str) -> float:
    return _told(threshold_of, value)


def _ratio(value: str) -> float:
    return _told(ratio_of, value)


def _told(convert: Callable[[str], float], value: str) -> float:
    try:
        return convert(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
