"""`vectorfleet.v1.KeyService`: API keys come and go. Etcd has them, hashed; the secret is in one answer and nowhere else."""
# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import math
import time
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from router.access.gate import account
from router.access.scopes import is_scope
from router.validation import refuse
from vectorfleet import errors, limits
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.key_record import KeyRecord, Limits, digest_of, new_key
from vectorfleet.v1 import key_service_pb2 as pb
from vectorfleet.v1 import key_service_pb2_grpc as pb_grpc

NAME: Final = pb.DESCRIPTOR.services_by_name["KeyService"].full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class KeyService(pb_grpc.KeyServiceServicer):
    """Makes, shows and revokes API keys."""

    def __init__(self, coordinator: Coordinator, *, authenticating: bool) -> None:
        self._coordinator = coordinator
        self._authenticating = authenticating

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Makes a key."""
        if not self._authenticating:
            # Otherwise anybody could make one now that opens the door once it is shut.
            raise errors.FailedPrecondition("this router asks nobody for a key", reason="AUTHENTICATION_OFF")
        now_ms = time.time_ns() // 1_000_000
        if len(self._keys()) >= limits.KEYS_MAX:
            raise errors.ResourceExhausted(f"there are {limits.KEYS_MAX} keys: revoke some", reason="QUOTA_EXCEEDED")
        key_id, secret = new_key()
        record = KeyRecord(
            id=key_id,
            digest=digest_of(secret),
            scopes=_scopes(request),
            description=_description(request),
            create_time_ms=now_ms,
            expire_time_ms=_expire_time_ms(request, now_ms),
            limits=_limits(request),
        )
        await self._coordinator.create_key(record)
        account(key=key_id)
        return pb.CreateKeyResponse(key=_key(record), secret=secret)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Shows all keys."""
        return pb.ListKeysResponse(keys=[_key(record) for _, record in sorted(self._keys().items())])

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Revokes a key."""
        record = self._keys().get(request.id)
        if record is None:
            raise errors.NotFound("there is no key of this id", reason="KEY_NOT_FOUND")
        account(key=record.id)
        await self._coordinator.delete_key(record)
        return pb.RevokeKeyResponse()

    def _keys(self) -> dict[str, KeyRecord]:
        state = self._coordinator.state
        if state.epoch == 0:
            raise errors.Unavailable("no key has been loaded from etcd yet", reason="COORDINATOR_UNAVAILABLE")
        return dict(state.keys)


def _scopes(request: pb.CreateKeyRequest) -> tuple[str, ...]:
    if not 1 <= len(request.scopes) <= limits.KEY_SCOPES_MAX:
        refuse("scopes", f"a key has 1 to {limits.KEY_SCOPES_MAX} scopes; this one has {len(request.scopes)}")
    for at, scope in enumerate(request.scopes):
        if not is_scope(scope):
            refuse(f"scopes[{at}]", "a scope is read, write or admin, a colon, and a collection's name or NAME* or *")
    return tuple(dict.fromkeys(request.scopes))


def _description(request: pb.CreateKeyRequest) -> str:
    text = request.description
    if len(text) > limits.KEY_DESCRIPTION_CHARS_MAX or not text.isprintable():
        refuse("description", f"a description has up to {limits.KEY_DESCRIPTION_CHARS_MAX} printable characters")
    return text


def _expire_time_ms(request: pb.CreateKeyRequest, now_ms: int) -> int:
    if not request.HasField("expire_time"):
        return 0
    expire_ms = request.expire_time.seconds * 1000 + request.expire_time.nanos // 1_000_000
    if expire_ms <= now_ms:
        refuse("expire_time", "a key that has expired already is of no use")
    if request.expire_time.seconds > _SECONDS_MAX or not 0 <= request.expire_time.nanos < 1_000_000_000:
        refuse("expire_time", "this is no time that a Timestamp can hold")
    return expire_ms


def _limits(request: pb.CreateKeyRequest) -> Limits:
    asked = request.limits
    for name in ("calls_per_second", "points_per_second", "points_per_day"):
        value = getattr(asked, name)
        if not math.isfinite(value) or value < 0:
            refuse(f"limits.{name}", "a limit is a number from 0 on; 0: as the router's own limits say")
    return Limits(asked.calls_per_second, asked.points_per_second, asked.points_per_day)


def _key(record: KeyRecord) -> pb.Key:
    return pb.Key(
        id=record.id,
        description=record.description,
        scopes=record.scopes,
        create_time=_timestamp(record.create_time_ms),
        expire_time=_timestamp(record.expire_time_ms) if record.expire_time_ms else None,
        limits=pb.KeyLimits(
            calls_per_second=record.limits.calls_per_s,
            points_per_second=record.limits.points_per_s,
            points_per_day=record.limits.points_per_day,
        ),
    )


def _timestamp(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


_SECONDS_MAX: Final = 253_402_300_799
"""The last second of the year 9999, where Timestamp ends."""
