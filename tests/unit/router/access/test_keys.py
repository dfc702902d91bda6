"""API keys from their making to their end, and the keys that verify tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from router.access import jwks as jwks_module
from tests.signing import jwk_set, public_jwk, rsa_key, token
from tests.unit.router.access.door import secured
from tests.unit.router.api import refused, until
from tests.unit.router.fake_node import fleet
from vectorfleet import errors
from vectorfleet.cluster.key_record import Limits
from vectorfleet.v1 import (
    collection_service_pb2,
    key_service_pb2,
    key_service_pb2_grpc,
)


async def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        made = await door.key("read:a", "write:a", "read:a", description="the loader", limits={"points_per_day": 9})
        assert made.secret.startswith(f"vfk_{made.key.id}_")
        (listed,) = (await door.keys().ListKeys(key_service_pb2.ListKeysRequest())).keys
        assert listed == made.key
        assert (list(listed.scopes), listed.description, listed.limits.points_per_day) == (
            ["read:a", "write:a"],
            "the loader",
            9,
        )
        (record,) = door.under.cluster.state.keys.values()
        assert record.limits == Limits(points_per_day=9)
        assert made.secret not in repr(record)
        assert made.secret.rpartition("_")[2] not in record.to_json().decode()
        await door.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(id=made.key.id))
        why = await refused(door.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(id=made.key.id)))
        assert why.reason == "KEY_NOT_FOUND"
        line = await door.audited(lambda line: line["method"].endswith("CreateKey"))
        assert line["key"] == made.key.id
        assert made.secret.rpartition("_")[2] not in door.audit_path.read_text()


async def test_an_id_is_no_key(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        one, other = await door.key("read:*"), await door.key("read:*")
        head, secret = one.secret[:21], one.secret[21:]
        flipped = secret[:-1] + ("0" if secret[-1] != "0" else "1")
        for wrong in (
            f"{head}{flipped}",
            f"{head}{other.secret[21:]}",
            f"{head}{'0' * 64}",
            one.secret[:-1],
            one.secret.upper(),
            head,
        ):
            listing = door.bearing(wrong).collections.ListCollections(collection_service_pb2.ListCollectionsRequest())
            assert (await refused(listing)).reason == "CREDENTIAL_INVALID", wrong
        listing = door.bearing(one.secret).collections.ListCollections(collection_service_pb2.ListCollectionsRequest())
        assert not (await listing).collections


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read:a"] * 101}, "scopes"),
        ({"scopes": ["read:a", "own:a"]}, "scopes[1]"),
        ({"scopes": ["read:a"], "description": "x" * 201}, "description"),
        ({"scopes": ["read:a"], "description": "a\nb"}, "description"),
        ({"scopes": ["read:a"], "expire_time": {"seconds": 1}}, "expire_time"),
        ({"scopes": ["read:a"], "expire_time": {"seconds": 2**62}}, "expire_time"),
        ({"scopes": ["read:a"], "expire_time": {"seconds": 2**33, "nanos": -5}}, "expire_time"),
        ({"scopes": ["read:a"], "limits": {"calls_per_second": -1}}, "limits.calls_per_second"),
        ({"scopes": ["read:a"], "limits": {"points_per_day": float("nan")}}, "limits.points_per_day"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(tmp_path: Path, request_: dict[str, Any], field: str) -> None:
    async with secured(tmp_path) as door:
        why = await refused(door.keys().CreateKey(key_service_pb2.CreateKeyRequest(**request_)))
        assert isinstance(why, errors.InvalidRequest)
        assert why.field == field
        assert not door.under.cluster.state.keys


async def test_a_key_expires(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        reader = await door.with_scopes("read:*", expire_time={"seconds": int(time.time()) + 1})

        async def expired() -> bool:
            try:
                await reader.collections.ListCollections(collection_service_pb2.ListCollectionsRequest())
            except grpc.aio.AioRpcError as error:
                return errors.from_rpc_error(error).reason == "CREDENTIAL_EXPIRED"
            return False

        await until(expired)


async def test_with_etcd_away_keys_go_on_and_none_is_made_or_revoked(tmp_path: Path) -> None:
    async with secured(tmp_path) as door:
        made = await door.key("read:*")
        reader = door.bearing(made.secret)
        door.under.cluster.away = True
        assert await reader.collections.ListCollections(collection_service_pb2.ListCollectionsRequest())
        why = await refused(door.key("read:*"))
        assert why.reason == "COORDINATOR_UNAVAILABLE"
        why = await refused(door.keys().RevokeKey(key_service_pb2.RevokeKeyRequest(id=made.key.id)))
        assert why.reason == "COORDINATOR_UNAVAILABLE"
        assert await reader.collections.ListCollections(collection_service_pb2.ListCollectionsRequest())


async def test_a_router_that_asks_nobody_makes_no_keys() -> None:
    async with fleet("n1") as under:
        keys: Any = key_service_pb2_grpc.KeyServiceStub(under.channel)
        why = await refused(keys.CreateKey(key_service_pb2.CreateKeyRequest(scopes=["admin:*"])))
        assert why.reason == "AUTHENTICATION_OFF"


async def test_a_new_signing_key_is_found_and_an_old_one_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_module, "FILE_POLL_S", 0.01)
    async with secured(tmp_path) as door:
        old, new = door.bearing(token()), door.bearing(token(rsa_key(1), "k1"))
        listing = collection_service_pb2.ListCollectionsRequest()
        assert await old.collections.ListCollections(listing)
        assert (await refused(new.collections.ListCollections(listing))).reason == "CREDENTIAL_INVALID"
        (tmp_path / "jwks.json").write_bytes(jwk_set(public_jwk(rsa_key(1), "k1")))

        async def let_in() -> bool:
            try:
                await new.collections.ListCollections(listing)
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(let_in)
        # Although its token was verified before, and has not expired.
        assert (await refused(old.collections.ListCollections(listing))).reason == "CREDENTIAL_INVALID"
