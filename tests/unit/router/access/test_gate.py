"""The door of a whole router over real gRPC, before a fake node: who gets in, what each sees, what is written down."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router.access import gate as gates
from tests.signing import rsa_key, token
from tests.unit.router.access.door import ADMIN, secured
from tests.unit.router.api import DIM, Api, loaded, refused, until
from vectorfleet import errors
from vectorfleet.local.ports import free_ports
from vectorfleet.v1 import (
    cluster_service_pb2,
    collection_service_pb2,
    point_service_pb2,
)


def names(count: int) -> list[str]:
    return [f"{i:03}" for i in range(count)]


async def test_each_kind_of_credential_opens_the_door(tmp_path: Path, rng: np.random.Generator) -> None:
    async with secured(tmp_path) as door:
        await loaded(door.bearing(ADMIN), rng)
        for api in (door.bearing(token()), await door.with_scopes("read:c")):
            assert (await api.search(np.zeros((1, DIM), np.float32))).results[0].hits


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "CREDENTIAL_MISSING"),
        ([("authorization", "")], "CREDENTIAL_INVALID"),
        ([("authorization", ADMIN)], "CREDENTIAL_INVALID"),
        ([("authorization", f"Basic {ADMIN}")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {ADMIN}x")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer  {ADMIN}")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {ADMIN}"), ("authorization", f"Bearer {ADMIN}")], "CREDENTIAL_INVALID"),
        ([("authorization-bin", b"Bearer " + ADMIN.encode())], "CREDENTIAL_MISSING"),
        ([("x-api-key", ADMIN)], "CREDENTIAL_MISSING"),
        ([("authorization", f"Bearer vfk_{'0' * 16}_{'0' * 64}")], "CREDENTIAL_INVALID"),
        ([("authorization", "Bearer " + "x" * 6000)], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {token(exp=int(time.time()) - 100)}")], "CREDENTIAL_EXPIRED"),
        ([("authorization", f"Bearer {token(nbf=int(time.time()) + 100_000)}")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {token(aud='others')}")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {token(rsa_key(1))}")], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {token(kid='unheard-of')}")], "CREDENTIAL_INVALID"),
    ],
)
async def test_nobody_else_gets_in(tmp_path: Path, metadata: Any, reason: str) -> None:
    async with secured(tmp_path) as door:
        stranger = door.sending(*metadata)
        why = await refused(stranger.search(np.zeros((1, DIM), np.float32)))
        assert isinstance(why, errors.Unauthenticated)
        assert why.reason == reason
        assert ADMIN not in str(why)
        line = await door.audited(lambda line: line["code"] == "UNAUTHENTICATED")
        assert line["method"] == "vectorfleet.v1.SearchService/Search"
        assert (line["who"], line["reason"]) == ("", reason)
        assert line["peer"].startswith("ipv4:127.0.0.1:")


async def test_those_who_are_turned_away_are_counted(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with secured(tmp_path, metrics_address=("127.0.0.1", port)) as door:
        for api in (door.sending(), door.sending(), await door.with_scopes("read:other")):
            await refused(api.search(np.zeros((1, DIM), np.float32)))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(20):
            lines = (await reader.read()).decode().splitlines()
        writer.close()
    assert 'vectorfleet_router_denied_total{reason="CREDENTIAL_MISSING"} 2.0' in lines
    assert 'vectorfleet_router_denied_total{reason="PERMISSION_DENIED"} 1.0' in lines


async def test_a_stranger_is_answered_before_his_request_is_read(tmp_path: Path) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        for method in ("vectorfleet.v1.SearchService/Search", "vectorfleet.v1.Nobody/Knows", "x/y"):
            call = channel.unary_unary(f"/{method}")
            why = await refused(call(b"\xff" * 1000, timeout=20))
            assert why.reason == "CREDENTIAL_MISSING", method
        endless = channel.stream_stream("/vectorfleet.v1.SearchService/SearchStream")(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await endless.read()  # answered although nothing was sent
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_who_is_let_in_learns_which_methods_there_are(tmp_path: Path) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        bearer = (("authorization", f"Bearer {token(scope='')}"),)
        why = await refused(channel.unary_unary("/vectorfleet.v1.Nobody/Knows")(b"", metadata=bearer))
        assert why.reason == "UNIMPLEMENTED"


async def test_health_is_open_and_reflection_is_not(tmp_path: Path) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def listed(metadata: Any) -> Any:
            requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            return [answer async for answer in reflection.ServerReflectionInfo(requests, metadata=metadata)]

        assert (await refused(listed(()))).reason == "CREDENTIAL_MISSING"
        (answer,) = await listed((("authorization", f"Bearer {token(scope='')}"),))
        assert len(answer.list_services_response.service) > 4


async def test_the_same_answer_whether_or_not_there_is_such_a_collection(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    async with secured(tmp_path) as door:
        await loaded(door.bearing(ADMIN), rng)
        other = await door.with_scopes("admin:other", "read:c-*", "write:C")
        answers = []
        for name in ("c", "d"):
            calls = [
                other.search(np.zeros((1, DIM), np.float32), name),
                other.upsert(np.zeros((1, DIM), np.float32), ["1"], name),
                other.points.Get(point_service_pb2.GetRequest(collection=name, ids=["001"])),
                other.points.Scroll(point_service_pb2.ScrollRequest(collection=name)),
                other.points.Count(point_service_pb2.CountRequest(collection=name)),
                other.points.Delete(point_service_pb2.DeleteRequest(collection=name, ids=["001"])),
                other.collections.GetCollection(collection_service_pb2.GetCollectionRequest(name=name)),
                other.collections.DeleteCollection(collection_service_pb2.DeleteCollectionRequest(name=name)),
                other.create(name),
                other.cluster.GetCluster(cluster_service_pb2.GetClusterRequest()),
            ]
            answers.append([await refused(call) for call in calls])
        for first, second in zip(*answers, strict=True):
            assert isinstance(first, errors.PermissionDenied)
            assert first.message.replace(":c,", ":X,") == second.message.replace(":d,", ":X,")
        line = await door.audited(lambda line: line["method"].endswith("/Search"))
        assert (line["collection"], line["code"]) == ("c", "PERMISSION_DENIED")
        assert line["who"].startswith("key:")
        assert (await door.bearing(ADMIN).points.Count(point_service_pb2.CountRequest(collection="c"))).points == 60


@pytest.mark.parametrize("name", ["", "C", "с", "c\u0301", "ｃ", "c/", "c\x00", "c ", " c", "c*", "*", "ć"])
async def test_no_other_spelling_of_a_name_gets_through(tmp_path: Path, name: str) -> None:
    async with secured(tmp_path) as door:
        await door.bearing(ADMIN).create("c")
        reader = await door.with_scopes("read:c")
        why = await refused(reader.points.Count(point_service_pb2.CountRequest(collection=name)))
        assert isinstance(why, errors.PermissionDenied)


async def test_a_request_that_does_not_parse_is_refused_as_ever(tmp_path: Path) -> None:
    async with secured(tmp_path) as door, grpc.aio.insecure_channel(door.address) as channel:
        bearer = (("authorization", f"Bearer {ADMIN}"),)
        why = await refused(channel.unary_unary("/vectorfleet.v1.PointService/Upsert")(b"\x0a\xff", metadata=bearer))
        assert isinstance(why, errors.InvalidRequest)


async def test_a_list_shows_what_its_reader_may_read(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        admin = door.bearing(ADMIN)
        for name in ("a-1", "a-2", "b", "c"):
            await admin.create(name)

        async def seen(api: Api, size: int) -> list[str]:
            found: list[str] = []
            page_token = ""
            while True:
                request = collection_service_pb2.ListCollectionsRequest(page_size=size, page_token=page_token)
                page = await api.collections.ListCollections(request)
                found += [one.spec.name for one in page.collections]
                page_token = page.next_page_token
                if not page_token:
                    return found

        for size in (0, 1):
            assert await seen(admin, size) == ["a-1", "a-2", "b", "c"]
            assert await seen(await door.with_scopes("read:a-*", "write:b", "admin:c"), size) == ["a-1", "a-2", "c"]
            assert await seen(await door.with_scopes("write:*"), size) == []


# ----------------------------------------------------------------------------------------------- limits and accounts


async def test_who_asks_too_much_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        await door.bearing(ADMIN).create("c")
        slow = await door.with_scopes("write:c", limits={"points_per_second": 10})
        vectors = np.zeros((100, DIM), np.float32)
        await slow.upsert(vectors, names(100))
        why = await refused(slow.upsert(vectors, names(100)))
        assert isinstance(why, errors.ResourceExhausted)
        assert why.reason == "RATE_LIMITED"
        assert 8.0 < why.retry_after_s <= 9.1
        daily = await door.with_scopes("write:c", limits={"points_per_day": 50})
        await daily.upsert(vectors, names(100))
        assert (await refused(daily.upsert(vectors, names(100)))).reason == "QUOTA_EXCEEDED"


async def test_writes_are_accounted_for_and_reads_are_not_unless_wanted(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    async with secured(tmp_path) as door:
        await loaded(door.bearing(ADMIN), rng)
        reader = door.sending(("authorization", f"Bearer {ADMIN}"), ("x-request-id", "my-id"))
        await reader.search(np.ones((1, DIM), np.float32))
        assert (await refused(reader.create("c"))).reason == "COLLECTION_EXISTS"
        line = await door.audited(lambda line: line["reason"] == "COLLECTION_EXISTS")
        assert line["request_id"] == "my-id"
        assert line["code"] == "ALREADY_EXISTS"
        assert line["ms"] > 0
        text = door.audit_path.read_text()
        methods = [json.loads(line)["method"].rpartition("/")[2] for line in text.splitlines()]
        assert methods == ["CreateCollection", "Upsert", "CreateCollection"]
        assert '"n":' not in text, "a payload"


async def test_an_audit_log_without_authentication(tmp_path: Path, rng: np.random.Generator) -> None:
    async with secured(tmp_path, required=False, audit_reads=1.0) as door:
        await loaded(door.sending(), rng)
        await door.sending().search(np.ones((1, DIM), np.float32))
        line = await door.audited(lambda line: line["method"].endswith("/Search"))
        assert (line["who"], line["code"], line["collection"]) == ("", "OK", "c")


async def test_a_flood_of_strangers_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "STRANGERS_LINES_PER_S", 5)
    async with secured(tmp_path) as door:
        stranger = door.sending()
        listing = collection_service_pb2.ListCollectionsRequest()
        for _ in range(50):
            await refused(stranger.collections.ListCollections(listing))
        counted = 0

        async def all_told() -> bool:
            nonlocal counted
            lines = [json.loads(line) for line in door.audit_path.read_text().splitlines()]
            counted = sum(line.get("calls", 1) for line in lines)
            return counted == 50

        await until(all_told)
        assert len(door.audit_path.read_text().splitlines()) < 50
