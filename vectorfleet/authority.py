"""A certificate authority to try things out with, and the certificates of a cluster that it signs: for `vectorfleet certs`.

Not for production: the authority's key lies beside the certificates. Keys are P-256, which every TLS library signs fast with.
The only file that needs the package `cryptography`.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOSTS_DEFAULT: Final = ("localhost", "127.0.0.1", "::1")
_EARLIER: Final = datetime.timedelta(minutes=5)
"""Other machines' clocks may be behind."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose certificate it is."""

    name: str
    uri: str = ""
    """Its SPIFFE ID."""
    serves: bool = True
    """Whether it also listens: then its certificate names the hosts."""


def subjects(trust_domain: str) -> tuple[Subject, ...]:
    """Those of a cluster: each role has one certificate, which its processes share."""
    return (
        Subject("router", f"spiffe://{trust_domain}/router"),
        Subject("shard", f"spiffe://{trust_domain}/shard"),
        Subject("etcd"),
        Subject("client", f"spiffe://{trust_domain}/client/default", serves=False),
    )


class Authority:
    """Signs certificates: one that `create` made, now or earlier."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Takes up an authority by its files. Raises `ValueError` where they are none that this module wrote."""
        self._certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not of an elliptic curve: it was made by another program")
        self._key = key

    @classmethod
    def create(cls, name: str, until: datetime.datetime) -> Self:
        """Makes an authority.

        Args:
            name: what people read.
            until: when it, and all that it signs, stop being valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        # Two of one name would be taken for each other by who looks for the signer of a certificate.
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {secrets.token_hex(4)}")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            _unsigned(own, own, key.public_key(), _now() - _EARLIER, until)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))

    @property
    def certificate_pem(self) -> bytes:
        """Its own certificate, which others are given to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Its key."""
        return _pem(self._key)

    def issue(
        self,
        subject: Subject,
        hosts: Sequence[str],
        *,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
    ) -> tuple[bytes, bytes]:
        """Makes a key and signs a certificate for it; returns both as PEM, the certificate first.

        Args:
            subject: whose.
            hosts: names and addresses under which others reach it.
            since: from when it is valid; None: from now on.
            until: until when; None: as long as the authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [_host(host) for host in hosts] if subject.serves else []
        if subject.uri:
            names.append(x509.UniformResourceIdentifier(subject.uri))
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if subject.serves else [])
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        certificate = (
            _unsigned(
                # No common name: etcd takes it for the name of a user.
                x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, subject.name)]),
                self._certificate.subject,
                key.public_key(),
                since or _now() - _EARLIER,
                until or self._certificate.not_valid_after_utc,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def write_certificates(folder: Path, hosts: Sequence[str], days: int, trust_domain: str) -> list[Path]:
    """Makes an authority and a cluster's certificates; returns the files that were written.

    Raises:
        FileExistsError: the folder holds a file of one of these names; nothing is overwritten.
        ValueError: a host is neither a name nor an address.
    """
    authority = Authority.create("vectorfleet development authority", _now() + datetime.timedelta(days=days))
    contents = {"ca.crt": authority.certificate_pem, "ca.key": authority.key_pem}
    contents |= _signed(authority, hosts, None, trust_domain)
    there = [name for name in contents if (folder / name).exists()]
    if there:
        raise FileExistsError(
            f"{folder} holds {', '.join(there)} already, and nothing is overwritten: take another folder, or --renew"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_new(folder / name, content, _mode(name))
    return [folder / name for name in contents]


def renew_certificates(folder: Path, hosts: Sequence[str], days: int, trust_domain: str) -> list[Path]:
    """Makes a cluster's certificates and keys anew, signed by the authority that the folder holds; returns the files.

    Each file is replaced in one step. Running processes take new ones up by themselves once certificate and key fit together.

    Raises:
        OSError: the authority's files cannot be read.
        ValueError: they are none, or a host is neither a name nor an address.
    """
    authority = Authority((folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes())
    contents = _signed(authority, hosts, _now() + datetime.timedelta(days=days), trust_domain)
    for name, content in contents.items():
        new = folder / f"{name}.new"
        new.unlink(missing_ok=True)
        write_new(new, content, _mode(name))
        new.replace(folder / name)
    return [folder / name for name in contents]


def _signed(
    authority: Authority, hosts: Sequence[str], until: datetime.datetime | None, trust_domain: str
) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for subject in subjects(trust_domain):
        certificate, key = authority.issue(subject, hosts, until=until)
        contents |= {f"{subject.name}.crt": certificate, f"{subject.name}.key": key}
    return contents


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that was not there, never readable for more than `mode` says. Raises `FileExistsError`."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _mode(name: str) -> int:
    return 0o600 if name.endswith(".key") else 0o644


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _unsigned(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    since: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )
