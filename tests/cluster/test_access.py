"""A secured cluster of real processes: who is let in, who is not and what is written down, and that no secret is to be found."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

import vectorfleet
from tests.cluster.waiting import until
from tests.signing import AUDIENCE, ISSUER, claims, jwk_set, public_jwk, raw_token, rsa_key, token
from vectorfleet.cli import main
from vectorfleet.local import LocalCluster

DIM = 8
PAYLOAD = "the-payload-of-a-point"
POINT_ID = "the-id-of-a-point"


class Secured(NamedTuple):
    """The cluster, and how to be somebody towards it."""

    cluster: LocalCluster

    @property
    def routers(self) -> list[str]:
        return [self.cluster.processes[name].address for name in ("router-0", "router-1")]

    @property
    def admin_key(self) -> str:
        return (self.cluster.data / "tls" / "admin.key").read_text().strip()

    def client(self, *, router: int = 0, timeout: float = 60.0, **credential: Any) -> vectorfleet.Client:
        """A client with the cluster's certificates and any credential, or none."""
        assert self.cluster.security is not None
        security = replace(self.cluster.security, api_key=None)
        return vectorfleet.Client(self.routers[router], timeout=timeout, security=security, **credential)

    def admin(self, router: int = 0) -> vectorfleet.Client:
        return self.client(router=router, api_key=self.admin_key)

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit_log.read_text().splitlines()]

    @property
    def audit_log(self) -> Path:
        return self.cluster.data / "logs" / "audit.jsonl"

    def line_after(self, before: int, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line behind the first `before` that is wanted, as soon as it is there."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.audited()[before:] if wanted(line)]
            return bool(found)

        until(there, what="a line in the audit log")
        return found[0]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "jwks.json").write_bytes(jwk_set(public_jwk(rsa_key(), "k0")))
    tokens = ("--jwks-file", str(folder / "jwks.json"), "--jwt-audience", AUDIENCE, "--jwt-issuer", ISSUER)
    with LocalCluster(
        folder / "data", nodes=1, routers=2, secure=True, router_args=[*tokens, "--jwt-leeway-s", "1"]
    ) as cluster:
        under = Secured(cluster)
        with under.admin() as admin:
            admin.create_collection("films", dim=DIM, shards=1)
            admin.upsert("films", ids=[POINT_ID], vectors=np.ones((1, DIM)), payloads=[{"text": PAYLOAD}])
        yield under


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "API_KEY", "API_KEY_FILE", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"VECTORFLEET_{name}", raising=False)


def confused() -> str:
    """Signed by HMAC with the public key for its secret."""
    pem = (
        rsa_key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    unsigned = raw_token({"alg": "HS256", "kid": "k0"}, claims(scope="admin:*")).rpartition(".")[0]
    mac = hmac.new(pem, unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


STRANGERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no token": (dict, "CREDENTIAL_MISSING"),
    "expired": (lambda: {"token": token(exp=int(time.time()) - 60)}, "CREDENTIAL_EXPIRED"),
    "not yet valid": (lambda: {"token": token(nbf=int(time.time()) + 60)}, "CREDENTIAL_INVALID"),
    "wrong audience": (lambda: {"token": token(aud="others.example")}, "CREDENTIAL_INVALID"),
    "wrong issuer": (lambda: {"token": token(iss="https://evil.example")}, "CREDENTIAL_INVALID"),
    "wrong signature": (lambda: {"token": token(rsa_key(1), scope="admin:*")}, "CREDENTIAL_INVALID"),
    "alg none": (
        lambda: {"token": raw_token({"alg": "none", "kid": "k0"}, claims(scope="admin:*"))},
        "CREDENTIAL_INVALID",
    ),
    "a public key for a secret": (lambda: {"token": confused()}, "CREDENTIAL_INVALID"),
    "a key of nobody": (lambda: {"api_key": f"vfk_{'0' * 16}_{'0' * 64}"}, "CREDENTIAL_INVALID"),
    "garbage": (lambda: {"api_key": "x" * 6000}, "CREDENTIAL_INVALID"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_is_refused_and_accounted_for(secured: Secured, kind: str) -> None:
    make, reason = STRANGERS[kind]
    before = len(secured.audited())
    with secured.client(**make()) as stranger, pytest.raises(vectorfleet.Unauthenticated) as caught:
        stranger.search("films", vectors=np.ones(DIM), k=1)
    assert caught.value.reason == reason
    search = ("UNAUTHENTICATED", "vectorfleet.v1.SearchService/Search", reason)  # other tests' lines may come late
    line = secured.line_after(before, lambda line: (line["code"], line["method"], line["reason"]) == search)
    assert line["who"] == ""


WORK: dict[str, Callable[[vectorfleet.Client, str], object]] = {
    "write": lambda client, name: client.upsert(name, ids=[1], vectors=np.ones((1, DIM))),
    "read": lambda client, name: client.search(name, vectors=np.ones(DIM)),
    "cluster": lambda client, name: client.cluster(),
}


@pytest.mark.parametrize(
    ("scope", "name", "work"),
    [
        ("read:*", "films", "write"),
        ("read:others", "films", "read"),
        ("read:others", "no-such-collection", "read"),
        ("read:film", "films", "read"),
        ("write:*", "films", "read"),
        ("read:* write:* admin:f*", "films", "cluster"),
    ],
)
def test_who_may_not_is_refused_and_accounted_for(secured: Secured, scope: str, name: str, work: str) -> None:
    before = len(secured.audited())
    with secured.client(token=token(scope=scope)) as limited, pytest.raises(vectorfleet.PermissionDenied) as caught:
        WORK[work](limited, name)
    wanted = {"write": f"write:{name}", "read": f"read:{name}", "cluster": "admin:*"}[work]
    assert caught.value.message == f"this needs the scope {wanted}, which the credential lacks"
    line = secured.line_after(before, lambda line: line["code"] == "PERMISSION_DENIED")
    assert (line["who"], line["collection"]) == ("jwt:ada", "" if work == "cluster" else name)
    with secured.admin() as admin:
        assert admin.count("films") == 1


async def test_who_may_is_let_in(secured: Secured, tmp_path: Path) -> None:
    with secured.client(token=token(scope="read:films")) as reader:
        assert [hits[0].id for hits in reader.search("films", vectors=np.ones(DIM), k=1).hits] == [POINT_ID]
        assert [one.name for one in reader.list_collections()] == ["films"]
    path = tmp_path / "token"
    path.write_text(token(scope="read:nothing"))
    assert secured.cluster.security is not None
    security = replace(secured.cluster.security, api_key=None, token=path)
    async with vectorfleet.AsyncClient(secured.routers[1], security=security, timeout=60) as client:
        assert await client.list_collections() == []
        path.write_text(token(scope="read:films openid"))
        assert await client.count("films") == 1


def test_a_key_counts_in_every_router_until_it_is_revoked(secured: Secured) -> None:
    with secured.admin() as admin:
        made = admin.keys.create(["read:films"], description="for a test")
        with secured.client(router=1, api_key=made.secret) as reader:
            until(lambda: succeeds(lambda: reader.count("films")), what="the other router knows the key")
            admin.keys.revoke(made.key.id)
            revoked_s = time.monotonic()
            until(lambda: not succeeds(lambda: reader.count("films")), what="the other router forgets the key")
            assert time.monotonic() - revoked_s < 30, (
                "etcd's watch tells of it; the bound is for a machine that is busy"
            )
        with pytest.raises(vectorfleet.Unauthenticated), secured.client(api_key=made.secret) as reader:
            reader.count("films")
        with pytest.raises(vectorfleet.NotFound) as caught:
            admin.keys.revoke(made.key.id)
    assert caught.value.reason == "KEY_NOT_FOUND"


def succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except vectorfleet.Unauthenticated:
        return False
    return True


def test_with_etcd_away_the_last_known_keys_go_on(secured: Secured) -> None:
    with secured.admin() as admin:
        made = admin.keys.create(["read:films"])
        secured.cluster.kill("etcd")
        try:
            with secured.client(api_key=made.secret) as reader:
                assert reader.count("films") == 1
            with pytest.raises(vectorfleet.Unauthenticated), secured.client(api_key=f"{made.secret[:-1]}x") as stranger:
                stranger.count("films")
            with pytest.raises(vectorfleet.Unavailable) as caught:
                admin.keys.revoke(made.key.id, timeout=15)
            assert caught.value.reason == "COORDINATOR_UNAVAILABLE"
        finally:
            secured.cluster.restart("etcd")
        until(lambda: revoked(admin, made.key.id), what="the key can be revoked again")
        with pytest.raises(vectorfleet.Unauthenticated), secured.client(api_key=made.secret) as reader:
            reader.count("films")


def revoked(admin: vectorfleet.Client, key_id: str) -> bool:
    try:
        admin.keys.revoke(key_id)
    except vectorfleet.NotFound:
        return True
    except vectorfleet.Unavailable:
        return False
    return True


def test_the_command_line_takes_keys_from_files_and_the_environment(secured: Secured, tmp_path: Path) -> None:
    environment = {"VECTORFLEET_CONFIG": str(secured.cluster.client_config), "VECTORFLEET_ADDRESS": secured.routers[0]}

    def run(*command: str, **more: str) -> str:
        done = CliRunner().invoke(main, command, env={**environment, **more})
        return f"{done.exit_code} {done.output}"

    key = tmp_path / "reader.key"
    made = run("keys", "create", "--scope", "read:films", "--expires-in", "1h", "--output", str(key))
    assert made.startswith(f"0 {key}\nmade key ")
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_text().strip()
    key_id = secret.split("_")[1]
    assert run("count", "films", "--api-key-file", str(key)) == "0 1\n"
    assert run("count", "films", VECTORFLEET_API_KEY=secret) == "0 1\n"
    assert run("count", "films", VECTORFLEET_API_KEY_FILE=str(key)) == "0 1\n"
    assert run("count", "films", VECTORFLEET_TOKEN=token(scope="read:films")) == "0 1\n"
    assert "PERMISSION_DENIED" in run("status", "--api-key-file", str(key))
    assert "must not" not in run("keys", "list")
    assert key_id in run("keys", "list")
    assert secret not in run("keys", "list", "--json")
    assert "exists" in run("keys", "create", "--scope", "read:films", "--output", str(key))
    assert run("keys", "revoke", key_id) == f"0 revoked {key_id}\n"
    refused = run("count", "films", "--api-key-file", str(key))
    assert refused.startswith("1 ")
    assert "CREDENTIAL_INVALID" in refused
    assert secret not in refused


def test_a_flood_of_strangers_costs_themselves_alone(secured: Secured) -> None:
    calls_each, before = 250, len(secured.audited())

    def flood() -> Counter[str]:
        told: Counter[str] = Counter()
        with secured.client() as stranger:
            for _ in range(calls_each):
                try:
                    stranger.count("films")
                except vectorfleet.VectorfleetError as error:
                    told[error.reason] += 1
        return told

    with secured.client(token=token(scope="read:films")) as reader, ThreadPoolExecutor(8) as threads:
        floods = [threads.submit(flood) for _ in range(8)]
        while not all(one.done() for one in floods):
            reader.search("films", vectors=np.ones(DIM), k=1, min_coverage=1.0)  # raises where it fails
        assert sum((one.result() for one in floods), Counter()) == Counter({"CREDENTIAL_MISSING": 8 * calls_each})

    def accounted() -> bool:
        lines = [line for line in secured.audited()[before:] if line.get("reason") == "CREDENTIAL_MISSING"]
        return sum(line.get("calls", 1) for line in lines) >= 8 * calls_each

    until(accounted, what="each call in the audit log, alone or in a sum")


def test_no_secret_is_to_be_found(secured: Secured, tmp_path: Path) -> None:
    """After calls of every kind, good and bad: logs, command lines, metrics, the file for bug reports, etcd's files, errors, and
    what clients say of themselves.
    """
    told = ""
    with secured.admin() as admin:
        made = admin.keys.create(["read:films", "write:films"])
        told += repr(admin) + repr(made) + str(made) + str(admin.keys.list())
    good, bad = token(scope="read:films"), token(rsa_key(1))
    for credential in ({"api_key": made.secret}, {"token": good}, {"token": bad}, {"api_key": f"{made.secret}0"}):
        with secured.client(**credential) as client:
            told += repr(client) + repr(vars(client)) + repr(secured.cluster.security)
            for call in (
                lambda client=client: client.search("films", vectors=np.ones(DIM), with_payload=True),
                lambda client=client: client.get("films", ids=[POINT_ID, "other"]),
                lambda client=client: client.upsert("films", ids=["x"], vectors=np.full((1, DIM), np.nan)),
                lambda client=client: client.delete_collection("films"),
                lambda client=client: client.cluster(),
            ):
                try:
                    call()
                except vectorfleet.VectorfleetError as error:
                    told += str(error) + repr(error) + repr(error.__cause__)
    secrets = {
        "admin key": secured.admin_key,
        "API key": made.secret,
        "its secret part": made.secret.rpartition("_")[2],
        "token": good,
        "its signature": good.rpartition(".")[2],
        "forged token": bad.rpartition(".")[2],
        "payload": PAYLOAD,
        "id of a point": POINT_ID,
        "etcd's password": (secured.cluster.data / "tls" / "etcd.password").read_text(),
    }
    before = len(secured.audited())
    with secured.admin() as admin:
        admin.keys.revoke(made.key.id)
    secured.line_after(before, lambda line: line["method"].endswith("RevokeKey"))

    bundle = tmp_path / "support.tar.gz"
    environment = {"VECTORFLEET_CONFIG": str(secured.cluster.client_config), "VECTORFLEET_ADDRESS": secured.routers[0]}
    assert CliRunner().invoke(main, ["debug", str(bundle)], env=environment).exit_code == 0
    with tarfile.open(bundle) as support:
        parts = {f"bundle: {one.name}": support.extractfile(one) for one in support if one.isfile()}
        bundled = {name: part.read() for name, part in parts.items() if part is not None}
    assert any("metrics" in name and b"vectorfleet_router_" in text for name, text in bundled.items())

    processes = [psutil.Process(child.pid) for child in secured.cluster.processes.values() if child.pid]
    places = {
        "errors and reprs": told.encode(),
        "command lines": " ".join(part for one in processes for part in one.cmdline()).encode(),
        **bundled,
        **{path.name: path.read_bytes() for path in (secured.cluster.data / "logs").iterdir()},
    }
    assert {"router-0.log", "node-0.log", "etcd.log", "audit.jsonl"} <= places.keys()
    found = [
        (name, place) for name, secret in secrets.items() for place, text in places.items() if secret.encode() in text
    ]
    assert found == []
    # Of the key etcd holds a hash alone; its password it must hold, hashed as well.
    files = b"".join(path.read_bytes() for path in (secured.cluster.data / "etcd").rglob("*") if path.is_file())
    assert made.key.id.encode() in files, "these are the files that hold keys"
    kept_out = ("API key", "its secret part", "admin key", "token", "etcd's password")
    assert [name for name in kept_out if secrets[name].encode() in files] == []
    for child in secured.cluster.processes.values():
        assert Path(f"/proc/{child.pid}/environ").stat().st_mode & 0o077 == 0, "its owner's alone"
