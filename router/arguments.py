"""The router's command line; every argument also comes from the environment as VECTORFLEET_<NAME>."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from router.access.arguments import add_access_arguments
from router.recall_check import RATE_DEFAULT
from vectorfleet import metrics_endpoint as metrics
from vectorfleet.cluster.etcd_arguments import add_etcd_arguments
from vectorfleet.telemetry.options import add_telemetry_arguments
from vectorfleet.tls_arguments import add_tls_arguments

PORT_DEFAULT: Final = 7700
BATCHES_IN_FLIGHT_DEFAULT: Final = 2
RATE_MAX: Final = 1000.0
_YES: Final = frozenset({"1", "true", "yes", "on"})


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> argparse.Namespace:
    """Reads the command line; says what is wrong and exits with status 2 where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m router",
        description="Takes the calls of a vectorfleet cluster's clients. Keeps no data: run as many as you like.",
    )

    def add(name: str, text: str, metavar: str, convert: Callable[[str], object], fallback: object) -> None:
        variable = _variable(name)
        default = environment.get(variable, fallback)
        shown = "" if fallback == "" else f" (default {fallback})"
        parser.add_argument(
            f"--{name}", metavar=metavar, type=convert, default=default, help=f"{text}{shown} [env {variable}]"
        )

    add("host", "address to listen on", "ADDRESS", str, "127.0.0.1")
    add("port", "port to listen on; 0: a free one", "PORT", _whole(0, 2**16 - 1), PORT_DEFAULT)
    add("router-id", "this router's name, unique in the cluster; empty: a random one", "ID", str, "")
    add("embed-threads", "cores for embedding models; 0: half of them", "N", _whole(0, 1024), 0)
    add(
        "batches-in-flight",
        "batches of like searches under way at once, before further ones wait to travel together",
        "N",
        _whole(1, 1024),
        BATCHES_IN_FLIGHT_DEFAULT,
    )
    add("metrics-address", metrics.HELP, "HOST:PORT", metrics.metrics_address, metrics.DEFAULT)
    add("recall-check-rate", "searches a second asked again with `exact`; 0: none", "RATE", _rate, RATE_DEFAULT)
    add(
        "memory-limit",
        "bytes of memory that this process may use: it admits nine tenths, cut up by kinds of calls; 0: what its container or "
        "machine has",
        "N",
        _whole(0, 2**62),
        0,
    )
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        default=environment.get(_variable("reuse-port"), "").lower() in _YES,
        help=f"share the port with other routers on this machine (SO_REUSEPORT) [env {_variable('reuse-port')}]",
    )
    add_telemetry_arguments(parser, environment)
    add_etcd_arguments(parser, environment)
    add_access_arguments(parser, environment)
    add_tls_arguments(parser, environment, serves_clients=True)
    parsed = parser.parse_args(arguments)
    parsed.router_id = parsed.router_id or f"router-{uuid.uuid4().hex[:12]}"
    return parsed


def _variable(name: str) -> str:
    return f"VECTORFLEET_{name.upper().replace('-', '_')}"


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= RATE_MAX:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 0 to {RATE_MAX:g}")
    return rate


def _whole(least: int, most: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from {least} to {most}")
        return int(value)

    return convert
