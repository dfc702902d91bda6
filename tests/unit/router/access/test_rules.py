"""The table of what RPCs need holds all RPCs of the contract, and its fields are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from router.access.principal import Principal
from router.access.rules import RULES, Needs
from router.access.scopes import Action, Scopes
from router.server import SERVICES

ROOT = Path(__file__).resolve().parents[4]
STANDARD = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
OWN_WORDS = {"collection", "collections", "name", "spec"}
"""Names of fields by which requests name collections."""


def contract() -> dict[str, MethodDescriptor]:
    """All public RPCs, as the generated code has them."""
    pool = descriptor_pool.Default()
    files = [f"vectorfleet/v1/{path.name}" for path in (ROOT / "protos" / "vectorfleet" / "v1").glob("*.proto")]
    services = [service for file in files for service in pool.FindFileByName(file).services_by_name.values()]
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


def test_every_rpc_has_a_row_and_every_row_is_an_rpc() -> None:
    assert len(contract()) > 15
    assert set(RULES) == set(contract()) | STANDARD


def test_the_router_serves_the_services_of_the_contract() -> None:
    assert set(SERVICES) == {name.rpartition("/")[0][1:] for name in contract()}


@pytest.mark.parametrize("name", sorted(contract()))
def test_a_row_reads_the_field_that_names_the_collection(name: str) -> None:
    rule, described = RULES[name], contract()[name].input_type
    message = message_factory.GetMessageClass(described)()
    assert (rule.needs is Needs.COLLECTION) == bool(rule.field)
    if rule.field:
        *way, last = rule.field.split(".")
        inner = message
        for step in way:
            inner = getattr(inner, step)
        assert inner.DESCRIPTOR.fields_by_name[last].type == FieldDescriptor.TYPE_STRING
        setattr(inner, last, "films")
        assert rule.collection(message) == "films"
    elif rule.needs is not Needs.CLUSTER:
        # Who needs no more than a credential must have no way to name a collection.
        assert not OWN_WORDS & set(described.fields_by_name)
    if rule.weigh is not None:
        assert rule.weigh(message) == 0


def test_only_health_is_open() -> None:
    opened = {name for name, rule in RULES.items() if rule.needs is Needs.NOTHING}
    assert opened == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}


@pytest.mark.parametrize(
    ("method", "enough", "too_little"),
    [
        ("CollectionService/CreateCollection", "admin:films", "write:films"),
        ("CollectionService/DeleteCollection", "admin:films", "write:films"),
        ("CollectionService/GetCollection", "read:films", "write:films"),
        ("PointService/Upsert", "write:films", "read:films"),
        ("PointService/BulkUpsert", "write:films", "read:films"),
        ("PointService/Delete", "write:films", "read:films"),
        ("PointService/Get", "read:films", "write:films"),
        ("PointService/Scroll", "read:films", "write:films"),
        ("PointService/Count", "read:films", "write:films"),
        ("SearchService/Search", "read:films", "write:films"),
        ("SearchService/SearchStream", "read:films", "write:films"),
        ("ClusterService/GetCluster", "admin:*", "admin:films"),
        ("ClusterService/CreateBackup", "admin:*", "read:*"),
        ("ClusterService/RestoreBackup", "admin:*", "admin:films"),
        ("ClusterService/SetDiagnostics", "admin:*", "admin:films"),
        ("ClusterService/GetDiagnostics", "admin:*", "read:*"),
        ("KeyService/CreateKey", "admin:*", "admin:films"),
        ("KeyService/ListKeys", "admin:*", "admin:films"),
        ("KeyService/RevokeKey", "admin:*", "admin:films"),
    ],
)
def test_each_rpc_takes_its_scope_and_no_less(method: str, enough: str, too_little: str) -> None:
    rule = RULES[f"/vectorfleet.v1.{method}"]
    assert rule.allows(Principal("p", Scopes.of([enough])), "films")
    assert not rule.allows(Principal("p", Scopes.of([too_little])), "films")
    assert (
        not rule.allows(Principal("p", Scopes.of([enough.replace("films", "others")])), "films") or enough == "admin:*"
    )


def test_writes_are_accounted_for_as_such() -> None:
    reads = {name.rpartition("/")[2] for name, rule in RULES.items() if rule.action is Action.READ}
    assert reads == {
        "GetCollection", "ListCollections", "Get", "Scroll", "Count", "Search", "SearchStream", "GetCluster", "Check", "Watch",
        "ServerReflectionInfo",
    }  # fmt: skip
