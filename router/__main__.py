"""`python -m router`: reads the command line, runs one router until SIGTERM or SIGINT.

Prints `ready HOST:PORT` and `metrics HOST:PORT` (or `off`) on stdout; logs go to stderr. Exit status: 0 after a stop, 1 where it
cannot run, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import os
import sys

# Before torch may be imported by the first text: tokenisers' own threads would fight the model's for the cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# gRPC reads it when it is imported. It logs what strangers do wrong, such as each compressed message that it refuses, and they
# must not fill our log. With TLS its core tells of handshakes that failed, and handshakes.py listens.
os.environ["GRPC_VERBOSITY"] = (
    "INFO"
    if ("--tls-cert" in " ".join(sys.argv) or "VECTORFLEET_TLS_CERT" in os.environ)
    and os.environ.get("GRPC_VERBOSITY") != "DEBUG"
    else os.environ.get("GRPC_VERBOSITY", "NONE")
)

import argparse
import asyncio
import faulthandler
import logging
import signal

from router.access.arguments import access_settings_of
from router.arguments import parse
from router.server import Router, RouterSettings
from vectorfleet import event_loop, handshakes, memory_limit, open_files
from vectorfleet.allocator import give_memory_back
from vectorfleet.cluster.etcd_arguments import coordinator_of
from vectorfleet.refusals import Refusals
from vectorfleet.telemetry.options import start_logs, telemetry_of
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.tls_arguments import transport_of

_log = logging.getLogger("router")


def main() -> int:
    """Runs the process; returns its exit status."""
    arguments = parse(sys.argv[1:])
    refusals = Refusals()
    if arguments.tls_cert:
        handshakes.watch(refusals.handshake)
    faulthandler.enable()
    open_files.raise_limit()
    give_memory_back()
    logs = start_logs(arguments)
    try:
        if arguments.tls_cert:
            refusals.open(arguments.audit_log)
        telemetry = telemetry_of(
            arguments, os.environ, logs, service="vectorfleet-router", instance=arguments.router_id, entry=True
        )
        try:
            event_loop.run(_serve(arguments, refusals, telemetry))
        finally:
            telemetry.close()
    except (OSError, ValueError) as error:
        _log.error("%s", error)
        return 1
    finally:
        refusals.close()
    return 0


async def _serve(arguments: argparse.Namespace, refusals: Refusals, telemetry: Telemetry) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    settings = RouterSettings(
        router_id=arguments.router_id,
        host=arguments.host,
        port=arguments.port,
        health_port=arguments.health_port,
        reuse_port=arguments.reuse_port,
        embed_threads=arguments.embed_threads,
        batches_in_flight=arguments.batches_in_flight,
        memory_bytes=memory_limit.admitted_bytes(arguments.memory_limit),
        access=access_settings_of(arguments),
        metrics_address=arguments.metrics_address,
        recall_check_rate=arguments.recall_check_rate,
    )
    transport = transport_of(arguments, refusals)
    if transport.secure and not transport.identifies and not settings.access.required:
        _log.warning("asks for neither a certificate nor a credential: whoever reaches this router may do everything")
    router = Router(coordinator_of(arguments), settings, transport, telemetry)
    await router.run(stopping, lambda address: _announce(address, router.metrics_address))


def _announce(address: str, metrics_address: str) -> None:
    print(f"ready {address}\nmetrics {metrics_address or 'off'}", flush=True)  # noqa: T201 (a launcher reads it)


if __name__ == "__main__":
    sys.exit(main())
