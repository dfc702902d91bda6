"""`up`: a whole cluster in the foreground, supervised, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from vectorfleet.cli.backups import place
from vectorfleet.cli.connection import DEFAULT_ADDRESS, as_json
from vectorfleet.cli.output import counted
from vectorfleet.local.cluster import LocalCluster, nodes_in
from vectorfleet.local.supervision import Supervisor
from vectorfleet.loopback import is_loopback

_NODES_DEFAULT = 2
_STEP_S = 0.2
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--nodes", type=click.IntRange(1), help="Shard servers. [default: as the data has; 2 for new data]")
@click.option(
    "--routers", type=click.IntRange(1), default=1, show_default=True, help="Routers, on ports one after another."
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=7700, show_default=True, help="Of the router; 0: a free one."
)
@click.option(
    "--one-port", is_flag=True, help="Routers share one port; the kernel gives each connection to one of them."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the router listens.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("vectorfleet-data"),
    show_default=True,
    help="Folder of all data and logs.",
)
@click.option(
    "--backup-root", "backup_roots", multiple=True, metavar="PLACE",
    help="A directory or URL below which backups may lie, besides `backups` in the data; may be given several times.",
)  # fmt: skip
@click.option(
    "--secure",
    is_flag=True,
    help="TLS on every hop, keys, an audit log, and a user in etcd; all is made below the data.",
)
@click.option("--insecure", is_flag=True, help="Let a router listen in the clear beyond this machine.")
@as_json
def up(
    nodes: int | None,
    routers: int,
    port: int,
    one_port: bool,
    host: str,
    data: Path,
    backup_roots: tuple[str, ...],
    secure: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """Start a cluster on this machine: etcd, shard servers, routers.

    Prints one line when it is ready, starts processes again that die, and stops all of them on Ctrl-C or SIGTERM (exit
    code 0). The data is there again at the next start.
    """
    count = nodes if nodes is not None else nodes_in(data) or _NODES_DEFAULT
    roots = [argument for root in backup_roots for argument in ("--backup-root", place(root))]
    if not (secure or insecure or is_loopback(host)):
        raise click.UsageError(
            f"--host {host} is open to other machines: --secure for TLS, or --insecure to speak in the clear"
        )
    if secure and insecure:
        raise click.UsageError("--secure and --insecure contradict each other")
    cluster = LocalCluster(
        data,
        nodes=count,
        routers=routers,
        host=host,
        port=port,
        one_port=one_port,
        shard_args=roots,
        router_args=["--insecure"] if insecure else [],
        secure=secure,
        log=_tell,
    )
    with contextlib.suppress(_Stop), _stop_on_signals():
        cluster.start()
        try:
            _announce(cluster, count, as_json)
            supervisor = Supervisor(cluster, _tell)
            while True:
                time.sleep(_STEP_S)
                supervisor.step(time.monotonic())
        finally:
            _tell("stopping")
            cluster.stop()


class _Stop(BaseException):
    """A signal asked us to stop."""


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Raises `_Stop` at the first signal; further ones do not disturb the orderly stop that it begins."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise _Stop

    before = {number: signal.signal(number, ask) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(cluster: LocalCluster, nodes: int, as_json: bool) -> None:
    address = cluster.address
    if as_json:
        processes = {
            name: {"pid": one.pid, "address": one.address, "metrics": one.metrics_address}
            for name, one in cluster.processes.items()
        }
        told = {"address": address, "data": str(cluster.data), "processes": processes}
        config = cluster.client_config
        click.echo(json.dumps(told if config is None else {**told, "client_config": str(config)}))
        return
    to = "" if address == DEFAULT_ADDRESS else f" --address {address}"
    data = os.path.relpath(cluster.data) if cluster.data.is_relative_to(Path.cwd()) else str(cluster.data)
    click.echo(
        f"vectorfleet is ready on {address} ({counted(nodes, 'node')}, data in {data}). Look: `vectorfleet status{to}`. "
        f"Ask: `vectorfleet search NAME --vector '[…]'{to}`. Stop: Ctrl-C."
    )
    if cluster.client_config is not None:
        click.echo(
            f"It speaks TLS. Whoever connects needs what this file names: export VECTORFLEET_CONFIG={cluster.client_config}"
        )


def _tell(line: str) -> None:
    try:
        click.echo(f"vectorfleet up: {line}", err=True)
    except OSError:
        # Nobody reads any more: the cluster goes on without words, and Python has nothing to flush at its end.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
