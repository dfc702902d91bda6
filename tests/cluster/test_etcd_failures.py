"""The coordinator against a real etcd that is killed, hangs, forgets, asks who is there, or loses a member."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.etcd_process import EtcdProcess, eventually, free_ports
from vectorfleet.cluster.etcd import EtcdCoordinator, EtcdTimeouts, EtcdTls
from vectorfleet.cluster.shard_map import CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.errors import Unavailable

pytestmark = pytest.mark.cluster
Connect = Callable[..., Awaitable[EtcdCoordinator]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes coordinators, started unless told otherwise; closed after the test."""
    made: list[EtcdCoordinator] = []

    async def make(*endpoints: str, start: bool = True, **options: object) -> EtcdCoordinator:
        made.append(EtcdCoordinator(endpoints, **{"lease_ttl_s": 3, **options}))
        if start:
            await made[-1].start()
        return made[-1]

    yield make
    await asyncio.gather(*(one.close() for one in made))


def record(name: str) -> CollectionRecord:
    return CollectionRecord(name, uuid.uuid4().hex, 8, 1, (ShardAssignment(0, 0, 2**64 - 1),))


QUICK = EtcdTimeouts(call_s=1.0, attempt_s=0.5, quiet_s=0.5)
"""Less patience, so that a test need not have more."""
ANN = {"username": "ann", "password": "pass"}
ROOT = {"username": "root", "password": "secret"}


async def test_the_state_survives_etcd_and_no_change_is_lost(connect: Connect, tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "data") as etcd:
        node, router, writer = [await connect(etcd.address, timeouts=QUICK) for _ in range(3)]
        await node.register(NodeInfo("n1", "127.0.0.1:7001"))
        await node.campaign("r1")
        await writer.create_collection(record("before"))
        await eventually(lambda: "before" in router.state.collections and node.leading)
        epochs = [router.state.epoch]

        async def note_epochs() -> None:
            while True:
                epochs.append((await router.changed(epochs[-1])).epoch)

        noting = asyncio.create_task(note_epochs())
        for round_number in range(2):
            etcd.kill()
            await eventually(lambda: not router.connected)
            assert "before" in router.state.collections
            assert "n1" in router.state.nodes
            with pytest.raises(Unavailable) as caught:
                await writer.create_collection(record("while away"))
            assert caught.value.reason == "COORDINATOR_UNAVAILABLE"
            etcd.launch()

            async def write_as_soon_as_possible(name: str) -> None:
                wanted = record(name)
                while True:
                    try:
                        return await writer.create_collection(wanted)
                    except Unavailable:
                        pass

            async with asyncio.timeout(30):
                for number in range(10):
                    await write_as_soon_as_possible(f"after-{round_number}-{number}")
            await eventually(lambda: router.connected and router.state.epoch >= writer.state.epoch)
            assert router.state == writer.state
            assert len(router.state.collections) == 1 + 10 * (round_number + 1)
        await eventually(lambda: "n1" in router.state.nodes and node.leading and router.state.controller == "r1")
        noting.cancel()
        assert epochs == sorted(set(epochs))


async def test_a_start_waits_for_an_etcd_that_is_not_there_yet(connect: Connect, tmp_path: Path) -> None:
    etcd = EtcdProcess(tmp_path / "data")
    one = await connect(etcd.address, start=False)
    starting = asyncio.create_task(one.start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    assert not one.connected
    with etcd:
        async with asyncio.timeout(20):
            await starting
        assert one.connected
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))


async def test_a_close_while_etcd_is_away_ends(connect: Connect, tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "data") as etcd:
        one = await connect(etcd.address)
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))
        etcd.kill()
        async with asyncio.timeout(5):
            await one.close()


async def test_a_hung_etcd_is_noticed_and_left_behind_when_it_wakes(connect: Connect, tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "data") as etcd:
        node, router = [await connect(etcd.address, timeouts=QUICK) for _ in range(2)]
        await node.register(NodeInfo("n1", "127.0.0.1:7001"))
        await eventually(lambda: "n1" in router.state.nodes)
        etcd.hang()
        await eventually(lambda: not router.connected, within_s=10)
        assert "n1" in router.state.nodes
        etcd.resume()
        await eventually(lambda: router.connected)
        await router.create_collection(record("after"))
        await eventually(lambda: "after" in node.state.collections)


async def test_an_etcd_that_was_wiped_is_not_believed(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EtcdProcess(tmp_path / "data") as etcd:
        one = await connect(etcd.address)
        for number in range(5):
            await one.create_collection(record(f"c{number}"))
        etcd.kill()
        etcd.wipe()
        etcd.start()
        await eventually(lambda: "wiped or restored" in caplog.text)
        assert len(one.state.collections) == 5
        fresh = await connect(etcd.address)
        assert not fresh.state.collections


async def test_users_and_forgotten_tokens(connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EtcdProcess(tmp_path / "data") as etcd:
        for command in ("user add root:secret", "user grant-role root root", "role add fleet"):
            await asyncio.to_thread(etcd.ctl, *command.split())
        for command in (
            "role grant-permission fleet --prefix=true readwrite /vectorfleet/",
            "user add ann:pass",
            "user grant-role ann fleet",
        ):
            await asyncio.to_thread(etcd.ctl, *command.split())
        early = await connect(etcd.address, **ANN)  # users are prepared, and not asked for yet
        await asyncio.to_thread(etcd.ctl, "auth", "enable")
        one = await connect(etcd.address, **ANN)
        stranger = await connect(etcd.address, **(ANN | {"password": "wrong"}), start=False)
        nobody = await connect(etcd.address, start=False)
        refused = [asyncio.create_task(other.start()) for other in (stranger, nobody)]
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))
        await one.create_collection(record("first"))
        await eventually(lambda: "first" in early.state.collections)
        etcd.kill()
        etcd.start()  # and every token is forgotten
        await one.create_collection(record("second"))
        await eventually(lambda: "second" in early.state.collections and "n1" in early.state.nodes)
        await eventually(lambda: "invalid user ID or password" in caplog.text)
        assert not any(task.done() for task in refused)
        assert "travels in the clear" in caplog.text
        for task in refused:
            task.cancel()
        await asyncio.gather(*refused, return_exceptions=True)


async def test_a_token_that_lapses_is_renewed(connect: Connect, tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "data", "--auth-token-ttl=1") as etcd:
        for command in ("user add root:secret", "user grant-role root root", "auth enable"):
            await asyncio.to_thread(etcd.ctl, *command.split())
        one = await connect(etcd.address, **ROOT, lease_ttl_s=60)
        await asyncio.sleep(2.5)  # etcd's own clock decides, and nothing shows it
        await one.create_collection(record("late"))
        assert "late" in one.state.collections


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate for a server named etcd.test, and one for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    for name, usage in (("server", "serverAuth,clientAuth"), ("client", "clientAuth")):
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:etcd.test\nextendedKeyUsage={usage}\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


async def test_tls_with_certificates_on_both_sides(connect: Connect, tmp_path: Path, certificates: Path) -> None:
    def pem(name: str) -> Path:
        return certificates / name

    ports = free_ports(2)
    secure = (
        f"--listen-client-urls=https://127.0.0.1:{ports[0]}",
        f"--advertise-client-urls=https://127.0.0.1:{ports[0]}",
        f"--cert-file={pem('server.pem')}",
        f"--key-file={pem('server.key')}",
        f"--trusted-ca-file={pem('ca.pem')}",
        "--client-cert-auth",
    )
    with EtcdProcess(tmp_path / "data", *secure, ports=(ports[0], ports[1])) as etcd:
        ours = EtcdTls(pem("ca.pem"), pem("client.pem"), pem("client.key"), server_name="etcd.test")
        one = await connect(etcd.address, tls=ours)
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))
        await one.create_collection(record("secret"))
        assert "n1" in one.state.nodes
        refused = {
            "no certificate of ours": replace(ours, certificate=None, key=None),
            "another name": replace(ours, server_name="other.test"),
            "another authority": replace(ours, ca=pem("client.pem")),
        }
        strangers = [await connect(etcd.address, tls=tls, start=False) for tls in refused.values()]
        plain = await connect(etcd.address, start=False)
        starts = [asyncio.create_task(other.start()) for other in (*strangers, plain)]
        done, _ = await asyncio.wait(starts, timeout=1.5)
        assert not done
        for task in starts:
            task.cancel()
        await asyncio.gather(*starts, return_exceptions=True)


async def test_a_dead_endpoint_is_passed_over(connect: Connect, tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    with EtcdProcess(tmp_path / "data") as etcd:
        host_name = etcd.address.replace("127.0.0.1", "localhost")
        one = await connect(dead, host_name)
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))
        await one.create_collection(record("films"))
        assert "n1" in one.state.nodes


@pytest.mark.parametrize("how", ["kill", "hang"])
async def test_a_cluster_of_three_loses_the_member_in_use(connect: Connect, tmp_path: Path, how: str) -> None:
    ports = free_ports(6)
    names = ("m0", "m1", "m2")
    everyone = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports[3:], strict=True))
    members = [
        EtcdProcess(tmp_path / name, f"--initial-cluster={everyone}", ports=(ports[at], ports[at + 3]), name=name)
        for at, name in enumerate(names)
    ]
    with ExitStack() as stack:
        for member in members:
            stack.callback(member.kill)
            member.launch()  # none is ready before a second one is there
        for member in members:
            member.wait_open()
        addresses = [member.address for member in members]
        patience = replace(QUICK, call_s=20.0)
        one = await connect(*addresses, timeouts=patience)
        other = await connect(*reversed(addresses), timeouts=patience)
        await one.register(NodeInfo("n1", "127.0.0.1:7001"))
        await one.campaign("r1")
        await one.create_collection(record("before"))
        await eventually(lambda: one.leading)
        getattr(members[0], how)()  # the member that `one` uses
        async with asyncio.timeout(40):
            await one.create_collection(record("after"))
        await eventually(lambda: "after" in other.state.collections and "after" in one.state.collections)
        await eventually(lambda: one.connected and "n1" in other.state.nodes and one.leading)
