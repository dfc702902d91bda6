"""The command-line arguments by which a process finds its etcd; router and shard server have the same.

Each has an environment variable of the same name (`--etcd-ca` = VECTORFLEET_ETCD_CA); the argument wins. The password has no
argument, since every user of a machine can read command lines: it comes from a file or from VECTORFLEET_ETCD_PASSWORD.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from vectorfleet.cluster.etcd import DEFAULT_PREFIX, LEASE_TTL_S, EtcdCoordinator, EtcdTls


def add_etcd_arguments(parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ) -> None:
    """Adds them, with defaults from the environment."""
    group = parser.add_argument_group("etcd")

    def add(name: str, text: str, metavar: str, fallback: str | None = None) -> None:
        variable = f"VECTORFLEET_{name.upper().replace('-', '_')}"
        default = environment.get(variable, fallback)
        required = name == "etcd" and default is None
        group.add_argument(
            f"--{name}", metavar=metavar, default=default, required=required, help=f"{text} [env {variable}]"
        )

    add("etcd", "members of the etcd cluster, separated by commas", "HOST:PORT[,…]")
    add("etcd-prefix", f"of all keys, ends in '/' (default {DEFAULT_PREFIX})", "PREFIX", DEFAULT_PREFIX)
    add("etcd-ca", "who signs etcd's certificates (PEM); switches TLS on", "FILE")
    add("etcd-cert", "this process's certificate (PEM), where etcd asks for one", "FILE")
    add("etcd-key", "the key of that certificate (PEM)", "FILE")
    add("etcd-user", "user of etcd's own access control", "NAME")
    add("etcd-password-file", "holds that user's password; or VECTORFLEET_ETCD_PASSWORD", "FILE")


def coordinator_of(
    arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ, *, lease_ttl_s: int = LEASE_TTL_S
) -> EtcdCoordinator:
    """Makes the coordinator that the arguments describe; not started.

    Raises:
        ValueError: an argument makes no sense, or a file of certificates cannot be used.
        OSError: the password's file cannot be read.
    """
    ca, cert, key = (
        None if value is None else Path(value) for value in (arguments.etcd_ca, arguments.etcd_cert, arguments.etcd_key)
    )
    if (cert is None) != (key is None):
        raise ValueError("--etcd-cert and --etcd-key go together")
    tls = EtcdTls(ca, cert, key) if ca is not None or cert is not None else None
    password = environment.get("VECTORFLEET_ETCD_PASSWORD", "")
    if arguments.etcd_password_file is not None:
        password = Path(arguments.etcd_password_file).read_text(encoding="utf-8").rstrip("\r\n")
    endpoints = [endpoint.strip() for endpoint in arguments.etcd.split(",") if endpoint.strip()]
    return EtcdCoordinator(
        endpoints,
        arguments.etcd_prefix,
        tls=tls,
        username=arguments.etcd_user or "",
        password=password,
        lease_ttl_s=lease_ttl_s,
    )
