"""Certificates of tests' own: an authority for the process, since making keys takes time, and a folder of files for each test."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path

from vectorfleet.authority import Authority, Subject
from vectorfleet.tls import TlsFiles

HOUR = datetime.timedelta(hours=1)
LOOPBACK = ("127.0.0.1", "localhost")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@functools.cache
def authority(name: str = "tests") -> Authority:
    return Authority.create(name, now() + datetime.timedelta(days=2))


def write(
    folder: Path,
    role: str = "router",
    *,
    signer: Authority | None = None,
    trusted: Authority | None = None,
    hosts: tuple[str, ...] = LOOPBACK,
    uri: str | None = None,
    since: datetime.datetime | None = None,
    until: datetime.datetime | None = None,
) -> TlsFiles:
    """Writes ca.crt, ROLE.crt and ROLE.key into a folder; what was there is replaced, the key last."""
    subject = Subject(role, f"spiffe://vectorfleet/{role}" if uri is None else uri)
    certificate, key = (signer or authority()).issue(subject, hosts, since=since, until=until)
    files = TlsFiles(folder / "ca.crt", folder / f"{role}.crt", folder / f"{role}.key")
    folder.mkdir(exist_ok=True)
    contents = ((trusted or authority()).certificate_pem, certificate, key)
    for path, content in zip((files.ca, files.cert, files.key), contents, strict=True):
        assert path is not None
        path.write_bytes(content)
    return files
