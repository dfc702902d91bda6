"""Ports and channels with certificates, between gRPC servers and channels of this process: who gets in, and renewals."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.nodes import NodePool
from shard_server.node import PEERS
from shard_server.peers import Peers
from tests.certificates import HOUR, authority, now, write
from vectorfleet import errors, serving
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.identity import MembersOnly
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc
from vectorfleet.refusals import Refusals
from vectorfleet.tls import TlsFiles, TlsWatch
from vectorfleet.transport import Transport, bind

SERVICE = "vectorfleet.internal.v1.ShardService"


class Shard(pb_grpc.ShardServiceServicer):
    """Answers, or waits until it may."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        self.asked.set()
        await self.may_answer.wait()
        return pb.DescribeResponse()

    async def FetchCodebook(self, request: Any, context: Any) -> AsyncIterator[pb.FetchCodebookResponse]:  # noqa: N802
        yield pb.FetchCodebookResponse(chunk=b"codebook")


class Refused(list[tuple[str, str]]):
    def __call__(self, method: str, who: str, peer: str) -> None:
        self.append((method.rpartition("/")[2], who))


@contextlib.asynccontextmanager
async def serving_shard(files: TlsFiles, **options: Any) -> AsyncIterator[tuple[str, TlsWatch, Shard, Refused]]:
    watch, shard, refused = TlsWatch(files), Shard(), Refused()
    transport = Transport(watch, **options)
    server = serving.new_server([MembersOnly("vectorfleet", PEERS, refused)] if transport.identifies else [])
    pb_grpc.add_ShardServiceServicer_to_server(shard, server)
    health = serving.LiveReadyHealth()
    health.install(server, [SERVICE])
    address = transport.listen(server, "127.0.0.1", 0)
    await server.start()
    try:
        yield address, watch, shard, refused
    finally:
        health.stop()
        await server.stop(0)


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return errors.from_rpc_error(error).reason
    return "ok"


def alone(options: Any = ()) -> list[tuple[str, int]]:
    """A connection of its own: gRPC shares those of equal channels."""
    return [*options, ("grpc.use_local_subchannel_pool", 1)]


@pytest.mark.parametrize(
    ("uri", "describe", "fetch"),
    [
        ("spiffe://vectorfleet/router", "ok", "ok"),
        ("spiffe://vectorfleet/router/router-3", "ok", "ok"),
        ("spiffe://vectorfleet/shard", "NOT_A_MEMBER", "ok"),
        ("spiffe://vectorfleet/client/x", "NOT_A_MEMBER", "NOT_A_MEMBER"),
        ("spiffe://vectorfleet/routers", "NOT_A_MEMBER", "NOT_A_MEMBER"),
        ("spiffe://other/router", "NOT_A_MEMBER", "NOT_A_MEMBER"),
        ("", "NOT_A_MEMBER", "NOT_A_MEMBER"),
    ],
)
async def test_a_shard_server_answers_its_own_cluster_alone(
    tmp_path: Path, uri: str, describe: str, fetch: str
) -> None:
    caller = Transport(TlsWatch(write(tmp_path / "caller", "router", uri=uri)))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, _, _, refused):
        async with caller.channel(address, alone()) as channel:
            stub: Any = pb_grpc.ShardServiceStub(channel)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == describe
            assert await outcome(stub.FetchCodebook(pb.FetchCodebookRequest()).read()) == fetch
            nothing = channel.unary_unary("/vectorfleet.v1.SearchService/Search")
            assert await outcome(nothing(b"")) == ("UNIMPLEMENTED" if describe == "ok" else describe)
            check = health_pb2.HealthCheckRequest(service=serving.LIVENESS)
            assert await outcome(health_pb2_grpc.HealthStub(channel).Check(check)) == "ok"
        told = [("Describe", describe), ("FetchCodebook", fetch), ("Search", describe)]
        assert refused == [(method, uri) for method, reason in told if reason != "ok"]


STRANGERS: dict[str, Callable[[Path], TlsFiles]] = {
    "no certificate": lambda folder: TlsFiles(write(folder).ca),
    "signed by another authority": lambda folder: write(folder, signer=authority("other")),
    "trusting another authority": lambda folder: write(folder, trusted=authority("other")),
    "expired": lambda folder: write(folder, since=now() - 2 * HOUR, until=now() - HOUR),
    "not yet valid": lambda folder: write(folder, since=now() + HOUR, until=now() + 2 * HOUR),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_strangers_do_not_get_past_the_handshake(tmp_path: Path, stranger: str) -> None:
    caller = Transport(TlsWatch(STRANGERS[stranger](tmp_path / "caller")))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, _, shard, _):
        async with caller.channel(address, alone()) as channel:
            stub: Any = pb_grpc.ShardServiceStub(channel)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == "UNREACHABLE"
        assert not shard.asked.is_set()


SERVERS: dict[str, Callable[[Path], TlsFiles]] = {
    "another host's": lambda folder: write(folder, "shard", hosts=("10.1.2.3", "shard.example")),
    "expired": lambda folder: write(folder, "shard", since=now() - 2 * HOUR, until=now() - HOUR),
}


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_that_is_not_what_it_should_be_is_not_spoken_to(tmp_path: Path, server: str) -> None:
    caller = Transport(TlsWatch(write(tmp_path / "caller")))
    async with serving_shard(SERVERS[server](tmp_path / "shard")) as (address, _, shard, _):
        async with caller.channel(address, alone()) as channel:
            stub: Any = pb_grpc.ShardServiceStub(channel)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == "UNREACHABLE"
        assert not shard.asked.is_set()


async def test_a_port_may_do_without_clients_certificates(tmp_path: Path) -> None:
    caller = Transport(TlsWatch(TlsFiles(write(tmp_path / "caller").ca)))
    served = serving_shard(write(tmp_path / "shard"), client_certificates=False)
    async with served as (address, _, _, _), caller.channel(address, alone()) as channel:
        stub: Any = pb_grpc.ShardServiceStub(channel)
        assert await outcome(stub.Describe(pb.DescribeRequest())) == "ok"


async def test_a_new_connection_sees_a_renewed_certificate_and_an_old_one_lives_on(tmp_path: Path) -> None:
    caller = Transport(TlsWatch(write(tmp_path / "caller")))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, watch, _, _):
        async with caller.channel(address, alone()) as before, caller.channel(address, alone()) as after:
            old: Any = pb_grpc.ShardServiceStub(before)
            new: Any = pb_grpc.ShardServiceStub(after)
            assert await outcome(old.Describe(pb.DescribeRequest())) == "ok"
            write(tmp_path / "shard", "shard", hosts=("elsewhere.example",))  # seen by who it lets in
            assert watch.look()
            assert await outcome(old.Describe(pb.DescribeRequest())) == "ok"
            assert await outcome(new.Describe(pb.DescribeRequest())) == "UNREACHABLE"
            write(tmp_path / "shard", "shard")
            assert watch.look()
        async with caller.channel(address, alone()) as again:
            stub: Any = pb_grpc.ShardServiceStub(again)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == "ok"


async def test_who_trusts_a_new_authority_lets_its_certificates_in(tmp_path: Path) -> None:
    other = authority("other")
    caller = Transport(TlsWatch(write(tmp_path / "caller", signer=other)))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, watch, _, _):
        async with caller.channel(address, alone()) as channel:
            stub: Any = pb_grpc.ShardServiceStub(channel)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == "UNREACHABLE"
        assert watch.files.ca
        watch.files.ca.write_bytes(authority().certificate_pem + other.certificate_pem)
        assert watch.look()
        async with caller.channel(address, alone()) as channel:
            stub = pb_grpc.ShardServiceStub(channel)
            assert await outcome(stub.Describe(pb.DescribeRequest())) == "ok"


async def test_a_router_dials_anew_when_its_certificate_is_renewed_and_the_call_under_way_ends_well(
    tmp_path: Path,
) -> None:
    ours = TlsWatch(write(tmp_path / "router"))
    pool = NodePool(Transport(ours))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, _, shard, _):
        shard.may_answer.clear()
        before = pool.at(address).channel
        call = asyncio.create_task(pool.at(address).call(pool.at(address).stub.Describe(pb.DescribeRequest())))
        await shard.asked.wait()
        write(tmp_path / "router", until=now() + datetime.timedelta(hours=5))
        assert ours.look()
        node = pool.at(address)
        assert node.channel is not before
        del before
        shard.may_answer.set()
        assert await call == pb.DescribeResponse()
        assert await node.call(node.stub.Describe(pb.DescribeRequest())) == pb.DescribeResponse()
        await pool.close()


async def test_a_shard_server_dials_its_peers_anew_likewise(tmp_path: Path) -> None:
    ours = TlsWatch(write(tmp_path / "caller", "shard"))
    peers = Peers(Transport(ours))
    async with serving_shard(write(tmp_path / "shard", "shard")) as (address, _, _, refused):

        async def fetch() -> bytes:
            return await peers.codebook(address, "u", 1, bytes_max=100, timeout_s=10)

        assert await fetch() == b"codebook"
        write(tmp_path / "caller", "shard", uri="spiffe://vectorfleet/client")
        assert ours.look()
        with pytest.raises(errors.PermissionDenied):
            await fetch()
        assert refused == [("FetchCodebook", "spiffe://vectorfleet/client")], "the new certificate is the one shown"
    await peers.close()


async def test_a_port_in_use_is_named() -> None:
    first, second = serving.new_server(), serving.new_server()
    address = bind(first, "127.0.0.1", 0)
    with pytest.raises(OSError, match=f"cannot listen on {address} "):
        bind(second, "127.0.0.1", int(address.rpartition(":")[2]))
    await first.stop(None)
    await second.stop(None)


async def test_a_node_under_another_hosts_name_is_not_spoken_to_and_the_audit_log_says_so(tmp_path: Path) -> None:
    refusals = Refusals()
    refusals.open(str(tmp_path / "audit.jsonl"))
    pool = NodePool(Transport(TlsWatch(write(tmp_path / "router")), refusals=refusals))
    following = asyncio.create_task(pool.follow(StaticCoordinator(StaticCluster())))
    async with serving_shard(SERVERS["another host's"](tmp_path / "shard")) as (address, _, shard, _):
        async with asyncio.timeout(20):
            while not (tmp_path / "audit.jsonl").read_text():
                with contextlib.suppress(errors.Unavailable):
                    await pool.at(address).call(pool.at(address).stub.Describe(pb.DescribeRequest()))
                await asyncio.sleep(0.05)
        assert not shard.asked.is_set()
    line = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[0])
    assert (line["peer"], line["reason"]) == (address, "the certificate is for other names than this address")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await pool.close()
    refusals.close()


async def test_in_the_clear_other_machines_are_not_dialled_unless_told(caplog: pytest.LogCaptureFixture) -> None:
    # Nobody answers at either address; what is dialled at all takes the whole deadline.
    request, elsewhere = pb.DescribeRequest(), "192.0.2.1:7701"
    async with Transport().channel(elsewhere) as channel:
        stub: Any = pb_grpc.ShardServiceStub(channel)
        assert await outcome(stub.Describe(request, timeout=20)) == "UNREACHABLE"
    assert f"{elsewhere} is on another machine" in caplog.text
    caplog.clear()
    async with Transport(insecure=True).channel(elsewhere), Transport().channel("127.0.0.1:1"):
        assert not caplog.text
