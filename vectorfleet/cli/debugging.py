"""`debug` and `tune`: all that a bug report needs in one file, and what the processes log and trace."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from vectorfleet._client import Client
from vectorfleet._version import __version__
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import counted, show_json, show_table
from vectorfleet.errors import VectorfleetError
from vectorfleet.telemetry.logs import LEVELS
from vectorfleet.v1 import cluster_service_pb2 as pb


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="SUPPORT.tar.gz")
@connected
def debug(client: Client, file: Path, as_json: bool) -> None:
    """Gather what a bug report needs: versions, options without secrets, shard map, metrics, logs, slow queries.

    Of the router at --address and of all nodes. What cannot be had is listed in the file, which is for its owner alone to
    read. Logs may name collections and addresses: look before you send it.
    """
    report = Report()
    shown = report.gather("cluster.json", lambda: _json(asdict(client.cluster())))
    report.gather("collections.json", lambda: _json([asdict(one) for one in client.list_collections()]))
    nodes = report.gather_process(client, "") or []
    if not nodes and shown:
        nodes = [node["id"] for node in json.loads(shown)["nodes"]]
    for node in nodes:
        report.gather_process(client, node)
    try:
        report.write(file)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror or error}") from error
    if as_json:
        show_json({"file": str(file), "contents": sorted(report.contents), "missing": report.missing})
        return
    click.echo(f"wrote {file}: {counted(len(report.contents), 'file')}")
    for what, why in report.missing.items():
        click.echo(f"warning: {what} could not be gathered: {why}", err=True)


@click.command()
@click.option("--log-level", type=click.Choice(LEVELS), help="From which level on processes log.")
@click.option(
    "--slow-query-ms", type=click.FloatRange(min=0), metavar="MS", help="From when on a query is slow; 0: never."
)
@click.option("--trace-ratio", type=click.FloatRange(0, 1), metavar="SHARE", help="Share of the calls that is traced.")
@connected
def tune(
    client: Client, log_level: str | None, slow_query_ms: float | None, trace_ratio: float | None, as_json: bool
) -> None:
    """Change what the router and all nodes log and trace, while they run; show it, without an option.

    It holds until they end. Of several routers, only the one at --address is changed.
    """
    settings = pb.DiagnosticSettings(log_level=log_level, slow_query_ms=slow_query_ms, trace_ratio=trace_ratio)
    response = client._calls.one(
        client._stubs.cluster.SetDiagnostics, pb.SetDiagnosticsRequest(settings=settings), None
    )
    if as_json:
        show_json(json_format.MessageToDict(response, preserving_proto_field_name=True))
        return
    rows = [
        (one.process, one.settings.log_level, one.settings.slow_query_ms, one.settings.trace_ratio, one.error)
        for one in response.processes
    ]
    show_table(["process", "log level", "slow query ms", "trace ratio", "error"], rows)
    if any(one.error for one in response.processes):
        raise click.ClickException("not all processes answered")


class Report:
    """The files of a report, and what is missing of it."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}

    def gather(self, name: str, make: Callable[[], bytes]) -> bytes | None:
        """Adds a file, or why there is none."""
        try:
            self.contents[name] = make()
        except VectorfleetError as error:
            self.missing[name] = str(error)
            return None
        return self.contents[name]

    def gather_process(self, client: Client, node: str) -> list[str] | None:
        """Adds what one process tells; returns the nodes that a router knows. "" is the router."""
        request = pb.GetDiagnosticsRequest(node=node)
        try:
            told = client._calls.one(client._stubs.cluster.GetDiagnostics, request, None, repeatable=False)
        except VectorfleetError as error:
            self.missing[f"node {node}" if node else "router"] = str(error)
            return None
        process = told.process
        folder = _file_name(process.process or node or "router")
        described = json_format.MessageToDict(process, preserving_proto_field_name=True)
        about = {name: described.get(name, {}) for name in ("process", "versions", "configuration", "settings")}
        self.contents[f"{folder}/process.json"] = _json(about)
        self.contents[f"{folder}/log.txt"] = _lines(process.log_lines)
        self.contents[f"{folder}/slow-queries.jsonl"] = _lines(process.slow_queries)
        if process.metrics:
            self.contents[f"{folder}/metrics.txt"] = process.metrics
        else:
            self.missing[f"{folder}/metrics.txt"] = "the process told no metrics"
        return list(told.nodes)

    def write(self, file: Path) -> None:
        """Writes all of it, whole or not at all, for its owner alone to read. Raises `OSError`."""
        summary = {"made_by": __version__, "missing": self.missing, "contents": sorted(self.contents)}
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                with tarfile.open(fileobj=stream, mode="w:gz") as archive:
                    for name, content in {"report.json": _json(summary), **self.contents}.items():
                        entry = tarfile.TarInfo(f"vectorfleet-support/{name}")
                        entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
                        archive.addfile(entry, io.BytesIO(content))
                stream.flush()
                os.fsync(stream.fileno())
            scratch.replace(file)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, default=str).encode()


def _lines(lines: Any) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _file_name(process: str) -> str:
    return "".join(one if one.isalnum() or one in "-_" else "_" for one in process)[:100] or "process"
