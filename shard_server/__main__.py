"""`python -m shard_server`: reads the command line, runs one node until SIGTERM or SIGINT.

Prints `ready HOST:PORT` and `metrics HOST:PORT` (or `off`) on stdout; logs go to stderr. Exit status: 0 after a stop, 1 where it
cannot run, 2 for a command line that makes no sense.
"""

from __future__ import annotations

import os
import sys

# Before numpy and FAISS are imported: OpenMP reads it once, and its threads would fight the search threads for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
from dataclasses import replace

from shard_server.arguments import parse
from shard_server.data_dir import DataDir, DataDirError
from shard_server.engine.upkeep import EngineSettings
from shard_server.node import Node, NodeSettings
from vectorfleet import event_loop, handshakes, memory_limit, open_files
from vectorfleet.allocator import give_memory_back
from vectorfleet.cluster.etcd_arguments import coordinator_of
from vectorfleet.refusals import Refusals
from vectorfleet.telemetry.options import start_logs, telemetry_of
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.tls_arguments import transport_of

_log = logging.getLogger("shard_server")


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
        refusals.open(arguments.audit_log)
        data = DataDir(arguments.data, arguments.node_id)
        telemetry = telemetry_of(
            arguments, os.environ, logs, service="vectorfleet-shard-server", instance=data.node_id, entry=False
        )
        try:
            closed = event_loop.run(_serve(arguments, data, refusals, telemetry))
        finally:
            telemetry.close()
    except (DataDirError, OSError, ValueError) as error:
        _log.error("%s", error)
        return 1
    finally:
        refusals.close()
    data.close()
    if not closed:
        # A thread is deep in the engine; waiting for it at exit could take minutes. All that was acknowledged is on disk.
        _log.warning("ends beside a busy thread")
        logging.shutdown()
        os._exit(0)
    return 0


async def _serve(arguments: argparse.Namespace, data: DataDir, refusals: Refusals, telemetry: Telemetry) -> bool:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    node = Node(
        data, coordinator_of(arguments), _settings(arguments), transport_of(arguments, refusals), refusals, telemetry
    )
    return await node.run(stopping, lambda address: _announce(address, node.metrics_address))


def _announce(address: str, metrics_address: str) -> None:
    print(f"ready {address}\nmetrics {metrics_address or 'off'}", flush=True)  # noqa: T201 (a launcher reads it)


def _settings(arguments: argparse.Namespace) -> NodeSettings:
    wanted = {
        "seal_points": arguments.seal_points,
        "seal_bytes": arguments.seal_bytes,
        "seal_age_s": arguments.seal_age_s,
        "min_free_bytes": arguments.min_free_bytes,
    }
    return NodeSettings(
        host=arguments.host,
        port=arguments.port,
        health_port=arguments.health_port,
        advertise=arguments.advertise,
        search_threads=arguments.search_threads,
        trust_domain=arguments.trust_domain,
        backup_roots=tuple(arguments.backup_root),
        metrics_address=arguments.metrics_address,
        memory_bytes=memory_limit.admitted_bytes(arguments.memory_limit),
        engine=replace(EngineSettings(), **{name: value for name, value in wanted.items() if value}),
    )


if __name__ == "__main__":
    sys.exit(main())
