"""How a process of the cluster listens to others and dials them: with TLS, or in the clear on this machine alone.

One object for a process, made by `__main__` from its arguments (tls_arguments.py) and handed to whatever opens a port or a
channel. With TLS both sides show a certificate; files are read again when they change (tls.py): a listening port shows the
new certificate to connections from then on, a channel is made anew when its user sees that `generation` has grown. A channel
that nobody holds any more closes when the last call on it has ended, so no call is lost to a renewal.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import grpc

from vectorfleet.loopback import is_loopback
from vectorfleet.refusals import Refusals
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.tls import TlsWatch

_NOWHERE: Final = "unix:/dev/null/not-spoken-to-in-the-clear"
_OTHER_NAME: Final = "Hostname Verification Check failed"

_log = logging.getLogger(__name__)

Options = Sequence[tuple[str, Any]]


class Transport:
    """Ports and channels of one process.

    Args:
        watch: the files; None: in the clear.
        client_certificates: whether a port wants a certificate of whoever connects.
        insecure: without files, whether others than those on this machine may be dialled.
        refusals: is told of servers that are not what their address says; None: the log alone.
    """

    def __init__(
        self,
        watch: TlsWatch | None = None,
        *,
        client_certificates: bool = True,
        insecure: bool = False,
        refusals: Refusals | None = None,
    ) -> None:
        self._watch = watch
        self._client_certificates = client_certificates
        self._insecure = insecure
        self._refusals = refusals or Refusals()
        self._credentials: tuple[int, grpc.ChannelCredentials] | None = None

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self._watch is not None

    @property
    def identifies(self) -> bool:
        """Whether whoever connects to our ports has shown a certificate."""
        return self._watch is not None and self._client_certificates

    @property
    def generation(self) -> int:
        """Grows when channels should be made anew."""
        return 0 if self._watch is None else self._watch.generation

    async def follow(self) -> None:
        """Follows the files for as long as it runs; returns at once where there are none."""
        if self._watch is not None:
            await self._watch.follow()

    def listen(self, server: grpc.aio.Server, host: str, port: int) -> str:
        """Gives a server its port; returns the bound host:port. Raises `OSError`."""
        return bind(server, host, port, None if self._watch is None else self._server_credentials(self._watch))

    def channel(self, address: str, options: Options = CHANNEL_OPTIONS) -> grpc.aio.Channel:
        """Makes a channel of the present generation. Calls to an address that must not be dialled fail as unreachable."""
        if self._watch is None:
            if not (self._insecure or is_loopback(address.rpartition(":")[0])):
                _log.warning(
                    "%s is on another machine and is not spoken to in the clear: give certificates, or --insecure",
                    address,
                )
                address = _NOWHERE
            return grpc.aio.insecure_channel(address, options=list(options))
        if self._credentials is None or self._credentials[0] != self._watch.generation:
            self._credentials = self._watch.generation, self._watch.material.channel_credentials()
        return grpc.aio.secure_channel(address, self._credentials[1], options=list(options))

    def unreached(self, address: str, message: str) -> None:
        """Takes note of why an address was not reached: a certificate of another host is somebody else who answers there.

        The core checks names behind the handshake, and writes nothing of it where handshakes.py would find it.
        """
        if _OTHER_NAME in message:
            self._refusals.peer(address, "the certificate is for other names than this address")

    def _server_credentials(self, watch: TlsWatch) -> grpc.ServerCredentials:
        shown = watch.generation

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # A thread of gRPC's asks before each handshake.
            nonlocal shown
            if watch.generation == shown:
                return None
            shown = watch.generation
            return watch.material.server_configuration()

        initial = watch.material.server_configuration()
        # The stubs do not know that None means "as before".
        return grpc.dynamic_ssl_server_credentials(initial, renewed, self._client_certificates)  # type: ignore[arg-type]


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> str:
    """Gives a server a port, without `credentials` in the clear; returns the bound host:port. Raises `OSError`."""
    where = f"[{host}]" if ":" in host and not host.startswith("[") else host
    wanted = f"{where}:{port}"
    try:
        bound = server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {wanted} (is it in use?): {error}") from error
    return f"{where}:{bound}"
