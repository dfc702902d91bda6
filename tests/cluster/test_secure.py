"""A cluster that `vectorfleet up --secure` started: who gets in, who does not and where that is told, and renewal under load."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import pytest

import vectorfleet
from tests.certificates import HOUR, authority, now, write
from tests.cluster.waiting import until
from vectorfleet import errors
from vectorfleet.authority import Authority, renew_certificates
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1.shard_service_pb2_grpc import ShardServiceStub
from vectorfleet.local.secure import LocalSecurity
from vectorfleet.tls import TlsFiles

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("localhost", "127.0.0.1")
DIM = 8


class Secure(NamedTuple):
    """The cluster, as its `--json` line tells of it."""

    address: str
    processes: dict[str, str]
    """Name → host:port."""
    data: Path
    config: Path

    @property
    def tls(self) -> Path:
        return self.data / "tls"

    def refusals(self) -> Counter[tuple[str, str, str]]:
        """(who, method, reason) in the audit log, of all that were refused."""
        lines = [json.loads(line) for line in (self.data / "logs" / "audit.jsonl").read_text().splitlines()]
        refused = [line for line in lines if line["code"] in ("UNAUTHENTICATED", "PERMISSION_DENIED")]
        return Counter((line["who"], line["method"].rpartition("/")[2], line["reason"]) for line in refused)

    def log(self, process: str) -> str:
        return (self.data / "logs" / f"{process}.log").read_text()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    program = [sys.executable, "-c", "from vectorfleet.cli import main; main()"]
    with (folder / "stderr").open("w") as log:
        running = subprocess.Popen(
            [*program, "up", "--secure", "--json", "--nodes", "2", "--port", "0", "--data", str(folder / "data")],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line, (folder / "stderr").read_text()
            told = json.loads(line)
            addresses = {name: one["address"] for name, one in told["processes"].items()}
            yield Secure(told["address"], addresses, Path(told["data"]), Path(told["client_config"]))
        finally:
            running.terminate()
            assert running.wait(60) == 0, (folder / "stderr").read_text()
            assert running.stdout is not None
            running.stdout.close()


@pytest.fixture
def allowed(secure: Secure, monkeypatch: pytest.MonkeyPatch) -> Iterator[vectorfleet.Client]:
    """A client that needs no more than the variable which `up` names."""
    monkeypatch.setenv("VECTORFLEET_CONFIG", str(secure.config))
    with vectorfleet.Client(secure.address, timeout=60) as client:
        yield client


def theirs(secure: Secure) -> Authority:
    return Authority((secure.tls / "ca.crt").read_bytes(), (secure.tls / "ca.key").read_bytes())


def failure(secure: Secure, security: vectorfleet.Security) -> vectorfleet.VectorfleetError:
    with (
        vectorfleet.Client(secure.address, timeout=10, security=security) as client,
        pytest.raises(vectorfleet.VectorfleetError) as caught,
    ):
        client.list_collections()
    return caught.value


# ------------------------------------------------------------------ who gets in


def test_all_of_it_works_with_tls_on_every_hop(secure: Secure, allowed: vectorfleet.Client) -> None:
    vectors = np.random.default_rng(3).standard_normal((3_000, DIM), np.float32)
    index = vectorfleet.IndexOptions(train_points=2_000)
    allowed.create_collection("trained", dim=DIM, shards=4, index=index)
    allowed.upsert("trained", ids=range(3_000), vectors=vectors)
    # The sample comes from both nodes to the one that trains, and the codebook from that to the other.
    codebook = allowed.wait_indexed("trained", timeout=120).progress.codebook  # type: ignore[union-attr]
    assert codebook.version >= 1
    found = allowed.search("trained", vectors=vectors[:5], k=1, min_coverage=1.0)
    assert [hits[0].id for hits in found.hits] == ["0", "1", "2", "3", "4"]
    assert {node.id for node in allowed.cluster().nodes if node.live} == {"node-0", "node-1"}


def test_no_port_speaks_in_the_clear(secure: Secure) -> None:
    for name, address in secure.processes.items():
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/a.B/C")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, name


def test_etcd_wants_a_certificate_and_a_password(secure: Secure) -> None:
    security = LocalSecurity(secure.tls, secure.data)
    with contextlib.closing(security.etcd_connection(secure.processes["etcd"], 10)) as connection:
        connection.request("POST", "/v3/kv/range", '{"key": "AA==", "range_end": "AA=="}')
        told = json.loads(connection.getresponse().read())
    assert told["error"] in ("etcdserver: permission denied", "etcdserver: user name is empty")


def test_no_secret_stands_in_a_command_line(secure: Secure) -> None:
    secrets = [path.read_text() for path in secure.tls.iterdir() if path.suffix == ".password"]
    assert len(secrets) == 2
    ours = [one for one in psutil.process_iter(["cmdline"]) if str(secure.data) in " ".join(one.info["cmdline"] or ())]
    assert len(ours) >= 4
    told = "".join(" ".join(one.info["cmdline"]) for one in ours)
    told += "".join(path.read_text() for path in (secure.data / "logs").iterdir())
    assert not [secret for secret in secrets if secret in told]


# ------------------------------------------------------------------ who does not


Stranger = Callable[[Secure, Path], TlsFiles]
STRANGERS: dict[str, tuple[Stranger, str, str]] = {
    "no certificate": (
        lambda secure, folder: TlsFiles(secure.tls / "ca.crt"),
        "it may want a certificate",
        "no certificate was shown",
    ),
    "another authority's certificate": (
        lambda secure, folder: write(folder, "client", trusted=theirs(secure)),
        "it may refuse this certificate",
        "the certificate is signed by no authority that we trust",
    ),
    "an expired certificate": (
        lambda secure, folder: write(
            folder, "client", signer=theirs(secure), trusted=theirs(secure), since=now() - 2 * HOUR, until=now() - HOUR
        ),
        "it may refuse this certificate",
        "the certificate has expired",
    ),
    "a certificate that is not valid yet": (
        lambda secure, folder: write(
            folder, "client", signer=theirs(secure), trusted=theirs(secure), since=now() + HOUR, until=now() + 2 * HOUR
        ),
        "it may refuse this certificate",
        "the certificate is not valid yet",
    ),
    "no TLS": (lambda secure, folder: TlsFiles(), "it may speak TLS alone", "the other side does not speak TLS"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_refused_and_the_audit_log_says_why(secure: Secure, stranger: str, tmp_path: Path) -> None:
    make, hint, why = STRANGERS[stranger]
    line = ("", "TLS handshake", why)
    before = secure.refusals()[line]
    told = failure(secure, vectorfleet.Security(*make(secure, tmp_path).paths))
    assert (told.reason, hint in told.message) == ("UNREACHABLE", True), told.message
    until(lambda: secure.refusals()[line] > before, what="a line in the audit log")


def test_a_client_that_trusts_another_authority_does_not_speak(secure: Secure, tmp_path: Path) -> None:
    files = write(tmp_path, "client", signer=theirs(secure), trusted=authority("other"))
    told = failure(secure, vectorfleet.Security(*files.paths))
    assert "not signed by the authority in ca" in told.message


def test_handshakes_that_do_not_end_cost_nobody_else(secure: Secure, allowed: vectorfleet.Client) -> None:
    host, _, port = secure.address.rpartition(":")
    allowed.create_collection("beside", dim=DIM, shards=2)
    allowed.upsert("beside", ids=["1"], vectors=np.ones((1, DIM), np.float32))
    with contextlib.ExitStack() as stack:
        for number in range(300):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])  # the first bytes of a handshake, and no more
        for _ in range(20):
            found = allowed.search("beside", vectors=np.ones((1, DIM), np.float32), k=1, min_coverage=1.0)
            assert found.ids[0, 0] == "1"
        with vectorfleet.Client(secure.address, timeout=60) as another:  # its own handshake is not held up
            assert another.count("beside") == 1
    allowed.delete_collection("beside")


class Relay:
    """Passes one connection on, unchanged, from another address of this machine: what somebody between could do at most."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._to = (host, int(port))
        self._server = socket.create_server(("127.0.0.2", 0))
        self._open = [self._server]
        self.address = f"127.0.0.2:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(20)

    def _accept(self) -> None:
        with contextlib.suppress(OSError), ThreadPoolExecutor(32) as pumps:
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(self._to)
                self._open += [here, there]
                pumps.submit(self._pump, here, there)
                pumps.submit(self._pump, there, here)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_router_under_another_name_is_not_spoken_to(secure: Secure) -> None:
    ours = vectorfleet.Security(*(secure.tls / name for name in ("ca.crt", "client.crt", "client.key")))
    with Relay(secure.address) as relay:
        told = failure(secure._replace(address=relay.address), ours)
    assert (told.reason, "for other names than this address" in told.message) == ("UNREACHABLE", True), told.message


@pytest.mark.parametrize(
    ("uri", "method"),
    [
        ("spiffe://vectorfleet/client/default", "Describe"),
        ("spiffe://vectorfleet/client/default", "FetchCodebook"),
        ("spiffe://vectorfleet/shard", "Search"),
        ("spiffe://elsewhere/router", "Describe"),
        ("", "Write"),
    ],
)
def test_a_shard_server_refuses_who_is_no_router(secure: Secure, uri: str, method: str, tmp_path: Path) -> None:
    material = write(tmp_path, "caller", signer=theirs(secure), trusted=theirs(secure), uri=uri).read()
    options = [("grpc.use_local_subchannel_pool", 1)]
    requests: dict[str, Any] = {
        "Describe": pb.DescribeRequest(),
        "FetchCodebook": pb.FetchCodebookRequest(),
        "Search": pb.SearchRequest(),
        "Write": pb.WriteRequest(),
    }
    line = (uri, method, "NOT_A_MEMBER")
    before = secure.refusals()[line]
    with grpc.secure_channel(secure.processes["node-1"], material.channel_credentials(), options) as channel:
        call = getattr(ShardServiceStub(channel), method)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(requests[method], timeout=10))  # a stream raises when it is read, any other call before
        told = errors.from_rpc_error(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER")
    until(lambda: secure.refusals()[line] > before, what="a line in the audit log")


def test_a_client_that_takes_a_shard_server_for_a_router_is_told_to_ask_one(secure: Secure) -> None:
    line = ("spiffe://vectorfleet/client/default", "ListCollections", "NOT_A_MEMBER")
    before = secure.refusals()[line]
    ours = vectorfleet.Security(*(secure.tls / name for name in ("ca.crt", "client.crt", "client.key")))
    told = failure(secure._replace(address=secure.processes["node-0"]), ours)
    assert isinstance(told, vectorfleet.PermissionDenied)
    assert "ask a router" in told.message
    until(lambda: secure.refusals()[line] > before, what="a line in the audit log")


# ------------------------------------------------------------------ renewal


class Load:
    """Threads that search and write; some over one connection, one over a new connection for each call."""

    def __init__(self, address: str, security: vectorfleet.Security) -> None:
        self._address = address
        self._security = security
        self._stop = threading.Event()
        self.calls = 0
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work,)) for work in (self._search, self._write, self._connect)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self) -> vectorfleet.Client:
        return vectorfleet.Client(self._address, timeout=30, security=self._security)

    def _run(self, work: Callable[[vectorfleet.Client], None]) -> None:
        try:
            with self._client() as client:
                while not self._stop.is_set():
                    work(client)
                    self.calls += 1
        except BaseException as error:
            self.failures.append(error)

    def _search(self, client: vectorfleet.Client) -> None:
        assert client.search("loaded", vectors=np.ones(DIM), k=1).coverage.complete

    def _write(self, client: vectorfleet.Client) -> None:
        client.upsert("loaded", ids=[self.calls % 100], vectors=np.ones((1, DIM)))

    def _connect(self, _: vectorfleet.Client) -> None:
        with self._client() as another:
            self._search(another)


def shown(address: str) -> str:
    """The certificate that a port shows to a new connection."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port))).strip()


def test_certificates_are_renewed_under_load_and_no_call_fails(
    secure: Secure, allowed: vectorfleet.Client, tmp_path: Path
) -> None:
    allowed.create_collection("loaded", dim=DIM, shards=4)
    allowed.upsert("loaded", ids=range(100), vectors=np.ones((100, DIM)))
    for name in ("ca.crt", "client.crt", "client.key"):
        shutil.copy(secure.tls / name, tmp_path)
    mine = replace(
        LocalSecurity(secure.tls, secure.data).client,
        ca=tmp_path / "ca.crt",
        cert=tmp_path / "client.crt",
        key=tmp_path / "client.key",
    )
    servers = {name: "router" if name == "router-0" else "shard" for name in ("router-0", "node-0", "node-1")}
    with Load(secure.address, mine) as load:
        until(lambda: load.calls > 20 or load.failures, what="load")
        for _ in range(2):
            # As a renewal that writes one file after the other, and takes its time.
            key = secure.tls / "shard.key"
            key.write_bytes(key.read_bytes()[:100])
            waiting = secure.log("node-0").count("not taken over yet")
            until(
                lambda now=waiting: secure.log("node-0").count("not taken over yet") > now, what="a half-written file"
            )
            renew_certificates(secure.tls, HOSTS, 30, "vectorfleet")
            for name, role in servers.items():
                new = (secure.tls / f"{role}.crt").read_text().strip()
                until(
                    lambda at=name, new=new: shown(secure.processes[at]) == new, what=f"the new certificate of {name}"
                )
            calls = load.calls
            until(lambda before=calls: load.calls > before + 20 or load.failures, what="load after the renewal")
    assert load.failures == []
    assert secure.log("router-0").count("certificates were read again") >= 2
