"""Who is on the other side of a TLS connection: a SPIFFE ID in its certificate, `spiffe://TRUST-DOMAIN/ROLE[/NAME]`.

Roles of the cluster's own processes are `router` and `shard`; a client's is `client`. That the certificate is genuine has been
checked before by TLS; here it is only read, and `MembersOnly` keeps everybody else away from a shard server.
docs/decisions/0013-transport-security.md says why a URI and not a host's name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from vectorfleet.errors import PermissionDenied

ROUTER: Final = "router"
SHARD: Final = "shard"
CLIENT: Final = "client"
TRUST_DOMAIN_DEFAULT: Final = "vectorfleet"
OPEN_SERVICE: Final = "/grpc.health.v1.Health/"
"""Any certificate of the CA may ask how we are."""
_SCHEME: Final = "spiffe://"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a SPIFFE ID says."""

    trust_domain: str
    role: str
    name: str = ""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}/{self.role}" + (f"/{self.name}" if self.name else "")


def identity_of(auth_context: Mapping[str, Iterable[bytes]]) -> Identity | None:
    """Reads what gRPC knows of a connection's certificate; None: there is none, or it bears no SPIFFE ID."""
    for uri in auth_context.get("peer_spiffe_id", ()):
        return parse(uri.decode(errors="replace"))
    return None


def parse(uri: str) -> Identity | None:
    """Reads a SPIFFE ID; None where it is none of ours."""
    if not uri.startswith(_SCHEME):
        return None
    trust_domain, _, path = uri.removeprefix(_SCHEME).partition("/")
    role, _, name = path.partition("/")
    return Identity(trust_domain, role, name) if trust_domain and role else None


Refused = Callable[[str, str, str], None]
"""Is told of a refusal: method, who called ("": nobody known), address."""


class MembersOnly(grpc.aio.ServerInterceptor):
    """Lets the cluster's own processes call, each what its role needs; all others get PERMISSION_DENIED.

    Args:
        trust_domain: of the cluster.
        also: roles besides `router`, by method.
        refused: is told of each refusal.
    """

    def __init__(self, trust_domain: str, also: Mapping[str, frozenset[str]], refused: Refused) -> None:
        self._trust_domain = trust_domain
        self._also = also
        self._refused = refused
        # Every call passes here: a handler is wrapped once, not once a call.
        self._wrapped: dict[str, tuple[object, grpc.RpcMethodHandler[Any, Any]]] = {}

    async def intercept_service(  # type: ignore[override]
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        checked: grpc.RpcMethodHandler[Any, Any]
        if handler is None:  # who may not come in does not learn what there is, and is told of all the same
            checked = self._guard(grpc.stream_stream_rpc_method_handler(_no_such_method), method)
            return checked
        known, guarded = self._wrapped.get(method, (None, None))
        if known is handler:
            return guarded
        checked = handler if method.startswith(OPEN_SERVICE) else self._guard(handler, method)
        self._wrapped[method] = handler, checked
        return checked

    def _guard(self, handler: Any, method: str) -> Any:
        allowed = frozenset({ROUTER}) | self._also.get(method, frozenset())

        def check(context: grpc.aio.ServicerContext[Any, Any]) -> None:
            identity = identity_of(context.auth_context())
            if identity is not None and identity.trust_domain == self._trust_domain and identity.role in allowed:
                return
            self._refused(method, "" if identity is None else str(identity), context.peer())
            told = "only this cluster's own processes may call a shard server: ask a router"
            raise PermissionDenied(told, reason="NOT_A_MEMBER")

        def whole(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
                check(context)
                return await call(request, context)

            return checked

        def stream(call: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
            async def checked(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                check(context)
                async for response in call(request, context):
                    yield response

            return checked

        kinds: dict[str, Any] = {
            "unary_unary": whole,
            "stream_unary": whole,
            "unary_stream": stream,
            "stream_stream": stream,
        }
        changes = {kind: wrap(getattr(handler, kind)) for kind, wrap in kinds.items() if getattr(handler, kind)}
        return handler._replace(**changes)


async def _no_such_method(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    yield
