"""What a process tells of itself on request, and what may be changed of it: messages of `ClusterService`."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from typing import Final

from vectorfleet._version import __version__
from vectorfleet.errors import InvalidRequest
from vectorfleet.telemetry.logs import LEVELS
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.v1 import cluster_service_pb2 as pb

PACKAGES: Final = (
    "faiss-cpu",
    "grpcio",
    "numpy",
    "opentelemetry-sdk",
    "protobuf",
    "rocksdict",
    "sentence-transformers",
)


def check(settings: pb.DiagnosticSettings) -> None:
    """Refuses what is out of range. Raises `InvalidRequest`."""
    if settings.HasField("log_level") and settings.log_level not in LEVELS:
        raise InvalidRequest(f"the levels are {', '.join(LEVELS)}", field="settings.log_level")
    if settings.HasField("slow_query_ms") and not 0 <= settings.slow_query_ms < math.inf:
        raise InvalidRequest("a number of milliseconds of at least 0", field="settings.slow_query_ms")
    if settings.HasField("trace_ratio") and not 0 <= settings.trace_ratio <= 1:
        raise InvalidRequest("a share, 0 to 1", field="settings.trace_ratio")


def change(telemetry: Telemetry, settings: pb.DiagnosticSettings) -> pb.DiagnosticSettings:
    """Changes what is set; returns all as it is then. Raises `InvalidRequest`, and has changed nothing."""
    check(settings)
    if settings.HasField("log_level") and telemetry.logs is not None:
        telemetry.logs.set_level(settings.log_level)
    if settings.HasField("slow_query_ms"):
        telemetry.slow.set_threshold(settings.slow_query_ms)
    if settings.HasField("trace_ratio"):
        telemetry.sampling.ratio = settings.trace_ratio
    return settings_of(telemetry)


def settings_of(telemetry: Telemetry) -> pb.DiagnosticSettings:
    """As they are."""
    return pb.DiagnosticSettings(
        log_level=None if telemetry.logs is None else telemetry.logs.level,
        slow_query_ms=telemetry.slow.threshold_ms,
        trace_ratio=telemetry.sampling.ratio,
    )


async def told_by(telemetry: Telemetry, process: str) -> pb.ProcessDiagnostics:
    """All that this process tells of itself."""
    return pb.ProcessDiagnostics(
        process=process,
        settings=settings_of(telemetry),
        versions=_versions(),
        configuration=telemetry.configuration,
        log_lines=[] if telemetry.logs is None else telemetry.logs.recent,
        slow_queries=[json.dumps(one) for one in telemetry.slow.recent],
        metrics=b"" if telemetry.metrics is None else await telemetry.metrics(),
    )


def _versions() -> dict[str, str]:
    found = {"vectorfleet": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
