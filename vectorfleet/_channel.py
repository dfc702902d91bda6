"""A client's channel, encrypted or in the clear: the fleet's options, a name, and a connection of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import grpc

from vectorfleet._arguments import target
from vectorfleet._attempts import NOT_REACHED, failure_of
from vectorfleet._credentials import Credentials, Secret
from vectorfleet._security import Security, hint, resolve
from vectorfleet._tracing import traced
from vectorfleet._version import __version__
from vectorfleet.errors import Unavailable, VectorfleetError
from vectorfleet.rpc_options import CHANNEL_OPTIONS

CLIENT_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    *CHANNEL_OPTIONS,
    # A name that stands for several routers, such as a headless Service: each call goes to the next.
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
    ("grpc.primary_user_agent", f"vectorfleet-python/{__version__}"),
    # Otherwise clients of one process share a connection, and with it the backoff of one that failed before.
    ("grpc.use_local_subchannel_pool", 1),
)

CORE_SAYS: Final = " (gRPC says: "


class Endpoint:
    """Where a client connects, and how.

    Args:
        address: host:port.
        security: what the caller says of it.
        api_key: stands for the one in `security`.
        token: likewise.

    Raises:
        InvalidRequest: it makes no sense, or TLS is missing.
    """

    def __init__(
        self,
        address: str,
        security: Security | None = None,
        api_key: Secret | None = None,
        token: Secret | None = None,
    ) -> None:
        self.address = target(address)
        if api_key is not None or token is not None:
            security = replace(security or Security(), api_key=api_key, token=token)
        self._security = resolve(self.address, security)
        self.metadata = Credentials(self._security.api_key, self._security.token).metadata
        """Asked before each call: what it carries besides its request."""

    def channel(self) -> grpc.Channel:
        """Makes a channel; it connects when first used. Raises `InvalidRequest` where a file cannot be used."""
        if self._security.tls:
            return traced(grpc.secure_channel(self.address, self._security.credentials(), options=CLIENT_OPTIONS))
        return traced(grpc.insecure_channel(self.address, options=CLIENT_OPTIONS))

    def aio_channel(self) -> grpc.aio.Channel:
        """The same for asyncio; to be made in the loop that uses it."""
        if self._security.tls:
            return traced(grpc.aio.secure_channel(self.address, self._security.credentials(), options=CLIENT_OPTIONS))
        return traced(grpc.aio.insecure_channel(self.address, options=CLIENT_OPTIONS))

    def failure(self, error: BaseException, *, closed: bool) -> VectorfleetError:
        """Reads what a channel raised; says what a connection that did not come about may mean."""
        failure = failure_of(error, self.address, closed=closed)
        where, reached, told = failure.message.partition(NOT_REACHED)
        meaning = hint(told, self._security) if reached and failure.reason == "UNREACHABLE" else ""
        return (
            Unavailable(f"{where}{reached}{meaning}{CORE_SAYS}{told})", reason=failure.reason) if meaning else failure
        )
