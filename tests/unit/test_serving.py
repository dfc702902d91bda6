"""Errors, health and reflection of a real grpc.aio server, as every process of the fleet sets it up."""

# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vectorfleet import errors, serving
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc

SERVICE = "vectorfleet.internal.v1.ShardService"
TIMEOUT_S = 10.0


class Raising(pb_grpc.ShardServiceServicer):
    """Raises what it is told to, in unary and in streaming methods."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.remaining: list[float] = []

    async def Write(self, request: pb.WriteRequest, context: Any) -> pb.WriteResponse:
        self.remaining.append(serving.remaining_s(context, 77.0))
        if self.error is not None:
            raise self.error
        return pb.WriteResponse(seqno=1)

    async def Sample(self, request: pb.SampleRequest, context: Any) -> AsyncIterator[pb.SampleResponse]:
        yield pb.SampleResponse(vectors=b"1234")
        if self.error is not None:
            raise self.error


@contextlib.asynccontextmanager
async def served(servicer: Raising) -> AsyncIterator[tuple[grpc.aio.Channel, serving.LiveReadyHealth]]:
    server = serving.new_server()
    pb_grpc.add_ShardServiceServicer_to_server(servicer, server)
    health = serving.LiveReadyHealth()
    health.install(server, [SERVICE])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=serving.CHANNEL_OPTIONS) as channel:
            yield channel, health
    finally:
        health.stop()
        await server.stop(0)


async def write_error(stub: Any, request: pb.WriteRequest | None = None) -> errors.VectorfleetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Write(request or pb.WriteRequest(), timeout=TIMEOUT_S)
    return errors.from_rpc_error(caught.value)


@pytest.mark.parametrize("reason", sorted(set(errors.REASONS) - {"UNIMPLEMENTED", "CANCELLED"}))
async def test_every_reason_travels_unchanged(reason: str) -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        servicer.error = errors.error_for(reason, "why", field="points[3].id")
        error = await write_error(pb_grpc.ShardServiceStub(channel))
    assert (type(error), error.reason, error.message, error.field) == (
        type(servicer.error),
        reason,
        "why",
        "points[3].id",
    )


async def test_other_exceptions_become_internal_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        stub = pb_grpc.ShardServiceStub(channel)
        servicer.error = KeyError("secret")
        error = await write_error(stub)
        assert error.reason == "INTERNAL"
        assert "secret" not in error.message
        assert "secret" in caplog.text
        servicer.error = TimeoutError()
        assert (await write_error(stub)).reason == "DEADLINE_EXCEEDED"


async def test_a_stream_that_fails_midway_says_why() -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        servicer.error = errors.DataLoss("segment 7")
        call = pb_grpc.ShardServiceStub(channel).Sample(pb.SampleRequest(), timeout=TIMEOUT_S)
        assert (await call.read()).vectors == b"1234"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert errors.from_rpc_error(caught.value).reason == "DATA_LOSS"


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}", "\N{GRINNING FACE}"])
async def test_a_very_long_message_still_arrives_with_its_reason(letter: str) -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        servicer.error = errors.InvalidRequest(letter * 100_000, field="queries[0].vector")
        error = await write_error(pb_grpc.ShardServiceStub(channel))
    assert error.reason == "INVALID_FIELD"
    assert error.message.startswith(letter * 10)


async def test_invalid_utf8_names_the_field() -> None:
    async with served(Raising()) as (channel, _):
        good = pb.WriteRequest(collection_uid="u")
        good.mutation.upsert.ids.extend(["fine", "QQQQ"])
        bad = good.SerializeToString().replace(b"QQQQ", b"Q\xff\xfeQ")
        call = channel.unary_unary(f"/{SERVICE}/Write")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bad, timeout=TIMEOUT_S)
        error = errors.from_rpc_error(caught.value)
        assert (error.reason, error.field) == ("INVALID_ID", "mutation.upsert.ids[1]")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff", timeout=TIMEOUT_S)
        assert errors.from_rpc_error(caught.value).reason == "INVALID_FIELD"


async def test_the_callers_deadline_is_seen() -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        stub = pb_grpc.ShardServiceStub(channel)
        await stub.Write(pb.WriteRequest(), timeout=5.0)
        await stub.Write(pb.WriteRequest())
    # gRPC rounds the deadline up on its way, so it may be seen a little above what was given.
    assert 0.0 < servicer.remaining[0] < 77.0
    assert servicer.remaining[1] == 77.0


async def test_live_is_not_ready() -> None:
    serving_status = health_pb2.HealthCheckResponse.SERVING
    async with served(Raising()) as (channel, health):
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
            return int(answer.status)

        assert await status("liveness") == serving_status
        for name in ("", "readiness", SERVICE):
            assert await status(name) == health_pb2.HealthCheckResponse.NOT_SERVING
        health.set_ready(True)
        for name in ("", "liveness", "readiness", SERVICE):
            assert await status(name) == serving_status
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status("nonsense")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_all_watchers_see_each_change_after_one_has_left() -> None:
    async with served(Raising()) as (channel, health):
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=TIMEOUT_S) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watches.pop().cancel()
        health.set_ready(True)
        async with asyncio.timeout(TIMEOUT_S):
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            health.stop()
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                assert await watch.read() is grpc.aio.EOF


async def test_reflection_lists_the_services() -> None:
    async with served(Raising()) as (channel, _):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for answer in stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT_S):
            names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_an_answer_and_an_error_carry_the_request_id_back() -> None:
    servicer = Raising()
    async with served(servicer) as (channel, _):
        stub: Any = pb_grpc.ShardServiceStub(channel)
        call = stub.Write(pb.WriteRequest(), metadata=(("x-request-id", "mine"),), timeout=TIMEOUT_S)
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
        servicer.error = errors.Unavailable("away")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Write(pb.WriteRequest(), metadata=(("x-request-id", "mine too"),), timeout=TIMEOUT_S)
        told = errors.from_rpc_error(caught.value)
        assert told.request_id not in ("", "mine too"), "a blank makes an id unfit for logs: the server makes its own"
        assert dict(caught.value.trailing_metadata() or ())["x-request-id"] == told.request_id
        assert str(told).endswith(f"[request {told.request_id}]")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Sample(pb.SampleRequest(), metadata=(("x-request-id", "s"),), timeout=TIMEOUT_S):
                pass
        assert errors.from_rpc_error(caught.value).request_id == "s"
