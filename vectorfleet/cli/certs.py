"""`certs`: a certificate authority and certificates to try out a secure cluster with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vectorfleet.identity import TRUST_DOMAIN_DEFAULT

_HOSTS = "localhost,127.0.0.1,::1"


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--hosts", default=_HOSTS, show_default=True, metavar="NAME[,…]",
    help="Names and addresses under which routers, shard servers and etcd are reached; *.shard.example for many.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long they are valid.")
@click.option(
    "--trust-domain",
    default=TRUST_DOMAIN_DEFAULT,
    show_default=True,
    help="Of the cluster's identities: spiffe://…/router.",
)
@click.option("--renew", is_flag=True, help="Make all but the authority anew, signed by the authority that DIR holds.")
def certs(folder: Path, hosts: str, days: int, trust_domain: str, renew: bool) -> None:
    """Make a certificate authority in DIR, and what it signs for routers, shard servers, etcd and a client.

    To try out and to develop: whoever reads DIR/ca.key can join the cluster. Keys are written for their owner alone. Nothing is
    overwritten without --renew, which running processes take up by themselves.
    """
    try:
        from vectorfleet.authority import renew_certificates, write_certificates
    except ImportError as error:
        raise click.ClickException(
            "`certs` needs the package cryptography: pip install 'vectorfleet[certs]'"
        ) from error
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    try:
        written = (renew_certificates if renew else write_certificates)(folder, named, days, trust_domain)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(f"wrote {path}")
    shown = os.path.relpath(folder) if folder.absolute().is_relative_to(Path.cwd()) else str(folder)
    click.echo(
        f"Servers: --tls-ca {shown}/ca.crt --tls-cert {shown}/router.crt --tls-key {shown}/router.key (shard servers: shard.*). "
        f"Clients: --ca {shown}/ca.crt --cert {shown}/client.crt --key {shown}/client.key"
    )
