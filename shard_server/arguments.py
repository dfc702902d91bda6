"""The shard server's command line; every argument also comes from the environment as VECTORFLEET_<NAME>."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from vectorfleet import metrics_endpoint as metrics
from vectorfleet.cluster.etcd_arguments import add_etcd_arguments
from vectorfleet.telemetry.options import add_telemetry_arguments
from vectorfleet.tls_arguments import add_tls_arguments

WILDCARDS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 (only recognised)


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """Reads the command line; says what is wrong and exits with status 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m shard_server",
        description="Serves shards of a vectorfleet cluster: keeps their data in a folder and registers in etcd.",
    )
    node = parser.add_argument_group("node")

    def add(
        name: str,
        text: str,
        metavar: str,
        convert: Callable[[str], object] = str,
        fallback: object = None,
        *,
        required: bool = False,
    ) -> None:
        variable = f"VECTORFLEET_{name.upper().replace('-', '_')}"
        default = environment.get(variable, fallback)
        shown = "" if fallback in (None, "") else f" (default {fallback})"
        node.add_argument(
            f"--{name}",
            metavar=metavar,
            type=convert,
            default=default,
            required=required and default is None,
            help=f"{text}{shown} [env {variable}]",
        )

    add("data", "folder of all that this node keeps; made where it is missing", "DIR", Path, required=True)
    add("host", "address to listen on", "ADDRESS", fallback="127.0.0.1")
    add("port", "port to listen on; 0: a free one", "PORT", _port, 0)
    add("advertise", "where routers reach this node; needed when it listens on all addresses", "HOST:PORT", fallback="")
    add("node-id", "this node's name in the cluster; kept in the folder from its first start on", "ID", fallback="")
    add(
        "audit-log",
        "a file that gets a JSON line for each caller that is turned away; '-': stdout",
        "PATH",
        fallback="",
    )
    add("metrics-address", metrics.HELP, "HOST:PORT", metrics.metrics_address, metrics.DEFAULT)
    add("search-threads", "searches that run at once; 0: one for each core", "N", _count, 0)
    add("seal-points", "points that a buffer holds before it is sealed; 0: the engine's default", "N", _count, 0)
    add("seal-bytes", "bytes of vectors likewise; 0: the engine's default", "N", _count, 0)
    add("seal-age-s", "age in seconds likewise; 0: the engine's default", "S", _seconds, 0.0)
    add(
        "memory-limit",
        "bytes of memory that this process may use: it admits nine tenths, and refuses what would grow beyond; 0: what its "
        "container or machine has",
        "N",
        _count,
        0,
    )
    add("min-free-bytes", "upserts are refused while the disk has less free; 0: the engine's default", "N", _count, 0)
    node.add_argument(
        "--backup-root",
        metavar="PLACE",
        action="append",
        default=[],
        help="a directory or URL (s3://bucket/folder) below which backups may be written and read; may be given several "
        "times; none: no backups [env VECTORFLEET_BACKUP_ROOT, separated by commas]",
    )
    add_telemetry_arguments(parser, environment)
    add_etcd_arguments(parser, environment)
    add_tls_arguments(parser, environment, serves_clients=False)
    parsed = parser.parse_args(arguments)
    named = environment.get("VECTORFLEET_BACKUP_ROOT", "").split(",")
    parsed.backup_root = parsed.backup_root or [place.strip() for place in named if place.strip()]
    if parsed.host in WILDCARDS and not parsed.advertise:
        parser.error(
            f"--host {parsed.host or repr('')} listens everywhere: --advertise must say where routers reach it"
        )
    return parsed


def _number(value: str, kind: type[int] | type[float], top: float, wanted: str) -> float:
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not 0 <= number < top:
        raise argparse.ArgumentTypeError(f"{value!r} is not {wanted}")
    return number


def _port(value: str) -> int:
    return int(_number(value, int, 2**16, "a port, 0 to 65535"))


def _count(value: str) -> int:
    return int(_number(value, int, 2**62, "a whole number of at least 0"))


def _seconds(value: str) -> float:
    return _number(value, float, float("inf"), "a number of seconds of at least 0")
