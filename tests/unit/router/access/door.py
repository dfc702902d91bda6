"""A router that asks for credentials, before a fake node, and calls with any of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from router.access.admin_key import AdminKey
from router.access.jwt_tokens import JwtRules
from router.access.settings import AccessSettings
from tests.signing import AUDIENCE, jwk_set, public_jwk, rsa_key
from tests.unit.router.api import Api, until
from tests.unit.router.fake_node import Fleet, fleet
from vectorfleet.v1 import (
    key_service_pb2,
    key_service_pb2_grpc,
)

ADMIN = "0123456789abcdef" * 4


class Bearer(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Puts a credential, or any metadata, on each call of a channel."""

    def __init__(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._metadata = metadata

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(metadata=grpc.aio.Metadata(*self._metadata)), request)


class Secured:
    """A router that asks for credentials, and calls with any of them."""

    def __init__(self, under: Fleet, address: str, audit: Path) -> None:
        self.under = under
        self.address = address
        self.audit_path = audit
        self._channels: list[grpc.aio.Channel] = []

    def sending(self, *metadata: tuple[str, str | bytes]) -> Api:
        channel = grpc.aio.insecure_channel(self.address, interceptors=[Bearer(metadata)])
        self._channels.append(channel)
        return Api(replace(self.under, channel=channel))

    def bearing(self, credential: str) -> Api:
        return self.sending(("authorization", f"Bearer {credential}"))

    def keys(self, credential: str = ADMIN) -> Any:
        api_channel = grpc.aio.insecure_channel(
            self.address, interceptors=[Bearer((("authorization", f"Bearer {credential}"),))]
        )
        self._channels.append(api_channel)
        return key_service_pb2_grpc.KeyServiceStub(api_channel)

    async def key(self, *scopes: str, **rest: Any) -> Any:
        return await self.keys().CreateKey(key_service_pb2.CreateKeyRequest(scopes=scopes, **rest))

    async def with_scopes(self, *scopes: str, **rest: Any) -> Api:
        return self.bearing((await self.key(*scopes, **rest)).secret)

    async def audited(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line of the audit log that is wanted, as soon as it is there."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            text = self.audit_path.read_text()
            found[:] = [line for line in map(json.loads, text.splitlines()) if wanted(line)]
            return bool(found)

        await until(there)
        return found[0]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def secured(
    tmp_path: Path, *, metrics_address: tuple[str, int] | None = None, **changes: Any
) -> AsyncIterator[Secured]:
    jwks = tmp_path / "jwks.json"
    jwks.write_bytes(jwk_set(public_jwk(rsa_key(), "k0")))
    audit = tmp_path / "audit.jsonl"
    settings = AccessSettings(
        required=True, admin_key=AdminKey(ADMIN), jwks=jwks, jwt=JwtRules(AUDIENCE), audit_log=str(audit)
    )
    async with fleet("n1", access=replace(settings, **changes), metrics_address=metrics_address) as under:
        door = Secured(under, under.address, audit)
        try:
            yield door
        finally:
            await door.close()


async def soon(condition: Callable[[], bool]) -> None:
    """Waits for what a thread or a file decides."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (no event of ours)
            await asyncio.sleep(0.005)
