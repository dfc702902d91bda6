"""API keys, as the two clients speak of them: values, requests, and `client.keys`."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vectorfleet import _arguments as arguments
from vectorfleet.v1 import key_service_pb2 as pb
from vectorfleet.v1 import key_service_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret.

    Attributes:
        id: names it in logs and for `revoke`.
        scopes: such as "read:films", "write:logs-*", "admin:*".
        description: for people.
        create_time: when it was made.
        expire_time: from when on it is refused; None: it does not expire.
        calls_per_second: its own limit on each router; 0: the router's.
        points_per_second: the same, of points written or deleted, and of queries.
        points_per_day: the same, over a day.
    """

    id: str
    scopes: tuple[str, ...]
    description: str
    create_time: datetime.datetime
    expire_time: datetime.datetime | None
    calls_per_second: float
    points_per_second: float
    points_per_day: float


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key that was just made.

    Attributes:
        key: what it is.
        secret: the key itself, as `Client(api_key=…)` takes it. It cannot be read again.
    """

    key: ApiKey
    secret: str = field(repr=False)


class Keys:
    """The API keys of a cluster: `client.keys`. All of it needs the scope "admin:*"."""

    def __init__(self, stub: pb_grpc.KeyServiceStub, call: Callable[..., Any]) -> None:
        self._stub = stub
        self._call = call

    def create(
        self,
        scopes: Iterable[str],
        *,
        description: str = "",
        expire_time: datetime.datetime | None = None,
        calls_per_second: float = 0.0,
        points_per_second: float = 0.0,
        points_per_day: float = 0.0,
        timeout: float | None = None,
    ) -> NewApiKey:
        """Makes a key; the answer is the only place where it can be read.

        Args:
            scopes: "read:NAME", "write:NAME", "admin:NAME"; NAME is a collection, NAME* for all that begin so, or "*".
            description: for people; up to 200 characters.
            expire_time: with a time zone; None: it does not expire.
            calls_per_second: for each router; 0: as the router's own limits say.
            points_per_second: points written or deleted, and queries; likewise.
            points_per_day: the same, over a day.
            timeout: seconds; None: the client's.

        Raises:
            InvalidRequest: an argument is out of range; `field` names it.
            PermissionDenied: this client is no admin of the cluster.
            FailedPrecondition: the router asks nobody for a key.
            Unavailable: etcd cannot be reached. Not retried.
        """
        request = _create_request(scopes, description, expire_time, calls_per_second, points_per_second, points_per_day)
        return _new_key(self._call(self._stub.CreateKey, request, timeout, repeatable=False))

    def list(self, *, timeout: float | None = None) -> list[ApiKey]:
        """Returns all keys by id."""
        return [_key(one) for one in self._call(self._stub.ListKeys, pb.ListKeysRequest(), timeout).keys]

    def revoke(self, key_id: str, *, timeout: float | None = None) -> None:
        """Revokes a key for good; all routers refuse it within about a second. Raises `NotFound`; retried like a creation."""
        request = pb.RevokeKeyRequest(id=arguments.text(key_id, "id"))
        self._call(self._stub.RevokeKey, request, timeout, repeatable=False)


class AsyncKeys:
    """The same for asyncio: see `Keys`."""

    def __init__(self, stub: Any, call: Callable[..., Awaitable[Any]]) -> None:
        self._stub = stub
        self._call = call

    async def create(
        self,
        scopes: Iterable[str],
        *,
        description: str = "",
        expire_time: datetime.datetime | None = None,
        calls_per_second: float = 0.0,
        points_per_second: float = 0.0,
        points_per_day: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 (the deadline travels with the call)
    ) -> NewApiKey:
        """Makes a key: see `Keys.create`."""
        request = _create_request(scopes, description, expire_time, calls_per_second, points_per_second, points_per_day)
        return _new_key(await self._call(self._stub.CreateKey, request, timeout, repeatable=False))

    async def list(self, *, timeout: float | None = None) -> list[ApiKey]:  # noqa: ASYNC109
        """Returns all keys by id."""
        return [_key(one) for one in (await self._call(self._stub.ListKeys, pb.ListKeysRequest(), timeout)).keys]

    async def revoke(self, key_id: str, *, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Revokes a key for good: see `Keys.revoke`."""
        request = pb.RevokeKeyRequest(id=arguments.text(key_id, "id"))
        await self._call(self._stub.RevokeKey, request, timeout, repeatable=False)


def _create_request(
    scopes: Iterable[str],
    description: str,
    expire_time: datetime.datetime | None,
    calls_per_second: float,
    points_per_second: float,
    points_per_day: float,
) -> pb.CreateKeyRequest:
    if isinstance(scopes, str):
        arguments.refuse("scopes", "scopes is a list of texts, not one text")
    request = pb.CreateKeyRequest(
        scopes=[arguments.text(scope, f"scopes[{at}]") for at, scope in enumerate(scopes)],
        description=arguments.text(description, "description"),
        limits=pb.KeyLimits(
            calls_per_second=calls_per_second, points_per_second=points_per_second, points_per_day=points_per_day
        ),
    )
    if expire_time is not None:
        if expire_time.tzinfo is None:
            arguments.refuse("expire_time", "a time needs its zone: datetime.now(UTC) + timedelta(days=30)")
        request.expire_time.FromDatetime(expire_time)
    return request


def _new_key(response: pb.CreateKeyResponse) -> NewApiKey:
    return NewApiKey(_key(response.key), response.secret)


def _key(message: pb.Key) -> ApiKey:
    return ApiKey(
        id=message.id,
        scopes=tuple(message.scopes),
        description=message.description,
        create_time=message.create_time.ToDatetime(tzinfo=datetime.UTC),
        expire_time=message.expire_time.ToDatetime(tzinfo=datetime.UTC) if message.HasField("expire_time") else None,
        calls_per_second=message.limits.calls_per_second,
        points_per_second=message.limits.points_per_second,
        points_per_day=message.limits.points_per_day,
    )
