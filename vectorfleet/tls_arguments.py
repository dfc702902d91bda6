"""The command-line arguments by which a process knows its certificates; router and shard server have the same.

Each has an environment variable of the same name (`--tls-ca` = VECTORFLEET_TLS_CA); the argument wins.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vectorfleet.identity import TRUST_DOMAIN_DEFAULT
from vectorfleet.loopback import is_loopback
from vectorfleet.refusals import Refusals
from vectorfleet.tls import TlsFiles, TlsWatch
from vectorfleet.transport import Transport

_YES: Final = frozenset({"1", "true", "yes", "on"})
_REMEDY: Final = (
    "give --tls-ca, --tls-cert and --tls-key (`vectorfleet certs` makes some to try out), or --insecure where the network itself "
    "keeps everybody else out"
)

_log = logging.getLogger(__name__)


def add_tls_arguments(
    parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ, *, serves_clients: bool
) -> None:
    """Adds them, with defaults from the environment; `serves_clients`: also what concerns clients."""
    group = parser.add_argument_group("transport security")

    def variable(name: str) -> str:
        return f"VECTORFLEET_{name.upper().replace('-', '_')}"

    def add(name: str, text: str, metavar: str, fallback: str | None = None) -> None:
        default = environment.get(variable(name)) or fallback
        group.add_argument(f"--{name}", metavar=metavar, default=default, help=f"{text} [env {variable(name)}]")

    add("tls-ca", "who signs the certificates of those that connect and of shard servers (PEM)", "FILE")
    add("tls-cert", "this process's certificate (PEM); switches TLS on", "FILE")
    add("tls-key", "the key of that certificate (PEM); read again with the others when they change", "FILE")
    add(
        "trust-domain",
        f"TRUST in the cluster's own identities, spiffe://TRUST/router and spiffe://TRUST/shard (default {TRUST_DOMAIN_DEFAULT})",
        "TRUST",
        TRUST_DOMAIN_DEFAULT,
    )
    group.add_argument(
        "--health-port",
        metavar="PORT",
        type=_port,
        default=environment.get(variable("health-port")) or None,
        help="answers grpc.health.v1 and nothing else on this port, in the clear: for probes, which show no certificate "
        f"[env {variable('health-port')}]",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        default=environment.get(variable("insecure"), "").lower() in _YES,
        help=f"speak in the clear beyond this machine as well, where there are no certificates [env {variable('insecure')}]",
    )
    if serves_clients:
        choices = ("required", "none")
        given = environment.get(variable("client-certificates"), choices[0])
        group.add_argument(
            "--client-certificates",
            choices=choices,
            default=given,
            help="whether a client must show a certificate; none: keys or tokens alone say who it is (default "
            f"{choices[0]}) [env {variable('client-certificates')}]",
        )
        if given not in choices:
            parser.error(f"{variable('client-certificates')} is {given!r}, not one of {', '.join(choices)}")


def transport_of(arguments: argparse.Namespace, refusals: Refusals | None = None) -> Transport:
    """Makes the transport that the arguments describe; `refusals` is told whom it turns away.

    Raises:
        ValueError: an argument makes no sense, a file cannot be used, or others would have to be spoken to in the clear.
    """
    files = TlsFiles(
        *(Path(name) if name else None for name in (arguments.tls_ca, arguments.tls_cert, arguments.tls_key))
    )
    if files == TlsFiles():
        _refuse_clear(arguments)
        return Transport(insecure=arguments.insecure)
    if None in (files.ca, files.cert, files.key):
        raise ValueError(
            "--tls-ca, --tls-cert and --tls-key go together: each process shows a certificate and checks others'"
        )
    _refuse_clear_etcd(arguments)
    wanted = getattr(arguments, "client_certificates", "required") == "required"
    return Transport(TlsWatch(files), client_certificates=wanted, refusals=refusals)


def _port(value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 2**16:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port, 1 to 65535")
    return int(value)


def _refuse_clear(arguments: argparse.Namespace) -> None:
    where = arguments.host or "all addresses"
    if not is_loopback(arguments.host):
        if not arguments.insecure:
            raise ValueError(f"it would listen on {where} in the clear: {_REMEDY}")
        _log.warning("listens on %s in the clear: whoever is on the network between reads along", where)
    _refuse_clear_etcd(arguments)


def _refuse_clear_etcd(arguments: argparse.Namespace) -> None:
    far = [member for member in arguments.etcd.split(",") if not is_loopback(member.strip().rpartition(":")[0])]
    if not far or arguments.etcd_ca or arguments.etcd_cert:
        return
    if not arguments.insecure:
        raise ValueError(
            f"it would speak to etcd at {far[0].strip()} in the clear: give --etcd-ca, or --insecure (see --help)"
        )
    _log.warning("speaks to etcd at %s in the clear: whoever is on the network between reads along", far[0].strip())
