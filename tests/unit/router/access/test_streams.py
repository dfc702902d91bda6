"""Streams behind the door: each message is looked at, and a credential that ends ends its stream."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from router.access.jwt_tokens import JwtRules
from tests.signing import AUDIENCE, token
from tests.unit.router.access.door import ADMIN, secured
from tests.unit.router.api import DIM, loaded, question, refused, until
from vectorfleet import errors
from vectorfleet.v1 import (
    key_service_pb2,
    point_service_pb2,
    search_service_pb2,
)


async def test_each_message_of_a_stream_is_authorised(tmp_path: Path, rng: np.random.Generator) -> None:
    async with secured(tmp_path, audit_reads=1.0) as door, grpc.aio.insecure_channel(door.address) as channel:
        await loaded(door.bearing(ADMIN), rng)
        await door.bearing(ADMIN).create("secret")
        bearer = (("authorization", f"Bearer {(await door.key('read:c')).secret}"),)
        stream = searching(channel)(metadata=bearer, timeout=20)
        await stream.write(message(1, "c"))
        assert (await stream.read()).request_id == 1
        await stream.write(message(2, "secret"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        lines = [
            await door.audited(lambda line, name=name: line.get("collection") == name and "Stream" in line["method"])
            for name in ("c", "secret")
        ]
        assert [(line["messages"], line["code"]) for line in lines] == [(1, "PERMISSION_DENIED")] * 2


async def test_a_bulk_load_writes_to_its_own_collection_alone(tmp_path: Path) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        await door.bearing(ADMIN).create("c")
        bearer = (("authorization", f"Bearer {(await door.key('write:b')).secret}"),)
        load = channel.stream_unary(
            "/vectorfleet.v1.PointService/BulkUpsert",
            request_serializer=point_service_pb2.BulkUpsertRequest.SerializeToString,
        )
        packed = point_service_pb2.PackedPoints(ids=["1"], vectors=b"\0" * 4 * DIM)
        requests = [point_service_pb2.BulkUpsertRequest(collection="c", packed=packed)]
        why = await refused(load(iter(requests), metadata=bearer, timeout=20))
        assert isinstance(why, errors.PermissionDenied)
        assert (await door.bearing(ADMIN).points.Count(point_service_pb2.CountRequest(collection="c"))).points == 0


async def test_a_revoked_key_ends_its_stream_and_its_calls(tmp_path: Path, rng: np.random.Generator) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        await loaded(door.bearing(ADMIN), rng)
        made = await door.key("read:c")
        reader = door.bearing(made.secret)
        assert (await reader.points.Count(point_service_pb2.CountRequest(collection="c"))).points == 60
        stream = searching(channel)(metadata=(("authorization", f"Bearer {made.secret}"),), timeout=20)
        await stream.write(message(1, "c"))
        assert (await stream.read()).request_id == 1
        await door.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(id=made.key.id))
        assert (
            await refused(reader.points.Count(point_service_pb2.CountRequest(collection="c")))
        ).reason == "CREDENTIAL_INVALID"
        await stream.write(message(2, "c"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        line = await door.audited(lambda line: line["method"].endswith("RevokeKey"))
        assert (line["key"], line["who"], line["code"]) == (made.key.id, "admin-key", "OK")


async def test_a_token_that_expires_ends_its_stream(tmp_path: Path, rng: np.random.Generator) -> None:
    rules = JwtRules(AUDIENCE, leeway_s=0)
    async with secured(tmp_path, jwt=rules) as door, grpc.aio.insecure_channel(door.address) as channel:
        await loaded(door.bearing(ADMIN), rng)
        short = token(exp=int(time.time()) + 2)
        stream = searching(channel)(metadata=(("authorization", f"Bearer {short}"),), timeout=20)
        sent = 0

        async def ended() -> bool:
            nonlocal sent
            sent += 1
            await stream.write(message(sent, "c"))
            return (await stream.read()) is grpc.aio.EOF

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await until(ended)
        assert errors.from_rpc_error(caught.value).reason == "CREDENTIAL_EXPIRED"
        assert sent > 1


async def test_a_stream_waits_for_its_limits(tmp_path: Path, rng: np.random.Generator) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        await loaded(door.bearing(ADMIN), rng)
        limits = key_service_pb2.KeyLimits(calls_per_second=20)
        bearer = (("authorization", f"Bearer {(await door.key('read:c', limits=limits)).secret}"),)
        stream = searching(channel)(metadata=bearer, timeout=20)
        for number in range(1, 31):
            await stream.write(message(number, "c"))
        await stream.done_writing()
        assert sorted([answer.request_id async for answer in stream]) == list(range(1, 31))


def searching(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        "/vectorfleet.v1.SearchService/SearchStream",
        request_serializer=search_service_pb2.SearchStreamRequest.SerializeToString,
        response_deserializer=search_service_pb2.SearchStreamResponse.FromString,
    )


def message(number: int, name: str) -> search_service_pb2.SearchStreamRequest:
    asked = question(np.zeros((1, DIM), np.float32), name)
    return search_service_pb2.SearchStreamRequest(request_id=number, request=asked)
