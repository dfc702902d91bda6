"""PEM files read and checked: what a client, a server and etcd's client make their gRPC credentials of.

gRPC takes whatever bytes it is given and fails later, in a handshake, without a reason that tells an operator anything. So files
are checked when they are read: that they can be read, are PEM, and that the key is the certificate's. `TlsWatch` looks again
and keeps the last good files while the new ones do not (yet) fit together: a renewal writes one file after the other.

Needs the standard library and grpc alone, since clients use it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

LOOK_INTERVAL_S: Final = 1.0
"""How soon renewed files are seen."""

_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
Stamps = tuple[Stamp | None, ...]


class TlsError(ValueError):
    """A file of certificates or keys cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What stood in the files: PEM."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a client: trusts `ca` (None: gRPC's default roots), and shows the certificate where there is one."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """For a server that has a certificate."""
        assert self.key is not None
        assert self.cert is not None
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.ca)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files by what they are for."""

    ca: Path | None = None
    """Who signs the certificates of the other side."""
    cert: Path | None = None
    """Our own certificate, followed by those between it and the CA's."""
    key: Path | None = None
    """The key of `cert`, without a passphrase."""

    def read(self) -> TlsMaterial:
        """Reads and checks them. Raises `TlsError`."""
        if (self.cert is None) != (self.key is None):
            raise TlsError("a certificate and its key go together: one of the two is not given")
        material = self._bytes()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for path in filter(None, (self.ca, self.cert)):
            try:
                context.load_verify_locations(path)
            except (ssl.SSLError, OSError) as error:
                raise TlsError(f"{path} holds no certificate in PEM, or a damaged one") from error
        if self.cert is not None:
            try:
                # Without a password given, a key that wants one would ask for it on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except (ssl.SSLError, OSError, ValueError) as error:
                raise TlsError(self._why_no_pair(material.key or b"", error)) from error
        if self._bytes() != material:  # OpenSSL takes paths alone: what was checked must be what was read
            raise TlsError("the files of certificate and key change while they are read")
        return material

    def stamps(self) -> Stamps:
        """Changes when a file does."""
        return tuple(None if path is None else _stamp(path) for path in self.paths)

    @property
    def paths(self) -> tuple[Path | None, Path | None, Path | None]:
        """All three."""
        return self.ca, self.cert, self.key

    def _bytes(self) -> TlsMaterial:
        return TlsMaterial(*(None if path is None else _read(path) for path in self.paths))

    def _why_no_pair(self, key: bytes, error: Exception) -> str:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            return f"the key in {self.key} is not that of the certificate in {self.cert}"
        if b"ENCRYPTED" in key:
            return f"the key in {self.key} wants a passphrase: store it without one, readable for its owner alone"
        return f"{self.key} holds no private key in PEM, or a damaged one"


class TlsWatch:
    """Files as they were when they last fitted together.

    `generation` grows with every change that was taken over.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Reads them. Raises `TlsError`."""
        self.files = files
        self._stamps = files.stamps()
        self.material = files.read()
        self.generation = 0
        self._told: Stamps = ()

    async def follow(self) -> None:
        """Looks for changes for as long as it runs."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            await asyncio.to_thread(self.look)  # the folder may be on a network

    def look(self) -> bool:
        """Reads the files again where they changed; returns whether new ones were taken over."""
        stamps = self.files.stamps()
        if stamps == self._stamps:
            return False
        try:
            material = self.files.read()
        except TlsError as error:
            # Looked at again each time, but told of once: half of a renewal is soon followed by the other.
            if stamps != self._told:
                _log.warning("changed certificates are not taken over yet, the last good ones stay: %s", error)
                self._told = stamps
            return False
        self._stamps = stamps
        if material == self.material:
            return False
        self.material = material
        self.generation += 1
        _log.info("certificates were read again: new connections use them")
        return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from error


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
