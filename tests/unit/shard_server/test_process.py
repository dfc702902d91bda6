"""`python -m shard_server` as a process, with a real etcd: its one line, its signals, its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from shard_server.arguments import parse
from tests.cluster.etcd_process import EtcdProcess
from tests.unit.shard_server.fake_replica import collection, until
from vectorfleet.cluster.etcd import EtcdCoordinator
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.internal.v1.shard_service_pb2_grpc import ShardServiceStub

ROOT = Path(__file__).resolve().parents[3]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
PREFIX = "/shard-server-test/"


async def spawned(data: Path, etcd: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "shard_server", "--data", str(data), "--etcd", etcd, "--etcd-prefix", PREFIX, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


@contextlib.asynccontextmanager
async def killed_at_the_end() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    processes: list[asyncio.subprocess.Process] = []
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def node(data: Path, etcd: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A node that is ready, and its address; killed at the end where it still runs."""
    async with killed_at_the_end() as processes:
        process = await spawned(data, etcd, *arguments)
        processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = (await process.stdout.readline()).decode()
            metrics = await process.stdout.readline()
        assert metrics.startswith(b"metrics 127.0.0.1:"), metrics
        assert line.startswith("ready 127.0.0.1:"), line
        yield process, line.split()[1]


async def stopped(process: asyncio.subprocess.Process, number: signal.Signals) -> tuple[int, bytes]:
    """Sends a signal; returns the exit status and what else stood on stdout."""
    assert process.stdout is not None
    process.send_signal(number)
    async with asyncio.timeout(STOP_TIMEOUT_S):
        rest = await process.stdout.read()
        return await process.wait(), rest


async def write(stub: Any, ids: list[str]) -> int:
    vectors = np.zeros((len(ids), 4), np.float32)
    mutation = storage_pb2.Mutation(upsert=storage_pb2.UpsertBatch(ids=ids, vectors=vectors.tobytes()))
    request = pb.WriteRequest(collection_uid="u1", epoch=1, term=1, mutation=mutation)
    return int((await stub.Write(request, timeout=START_TIMEOUT_S)).seqno)


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_cleanly_amid_writes_and_finds_its_data_again(tmp_path: Path, number: signal.Signals) -> None:
    with EtcdProcess(tmp_path / "etcd") as etcd:
        watcher = EtcdCoordinator([etcd.address], PREFIX)
        await watcher.start()
        async with node(tmp_path / "n1", etcd.address, "--node-id", "n1") as (process, address):
            await watcher.create_collection(collection("u1", ["n1"]))
            await until(lambda: "n1" in watcher.state.nodes, "registered")
            assert watcher.state.nodes["n1"].address == address
            async with grpc.aio.insecure_channel(address) as channel:
                stub = ShardServiceStub(channel)
                await write(stub, ["first"])
                acknowledged: list[str] = []

                async def keep_writing() -> None:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        for n in range(1_000_000):
                            await write(stub, [str(n)])
                            acknowledged.append(str(n))

                writing = asyncio.create_task(keep_writing())
                await write(stub, ["second"])
                assert await stopped(process, number) == (0, b"")
                await writing
        await until(lambda: "n1" not in watcher.state.nodes, "the lease given back")
        async with node(tmp_path / "n1", etcd.address) as (process, address):
            async with grpc.aio.insecure_channel(address) as channel:
                wanted = [*acknowledged, "first", "second"][-10_000:]
                answer: Any = await ShardServiceStub(channel).Fetch(
                    pb.FetchRequest(collection_uid="u1", ids=wanted), timeout=START_TIMEOUT_S
                )
                assert [point.id for point in answer.points] == wanted
            assert await stopped(process, number) == (0, b"")
        await watcher.close()


@pytest.mark.cluster
async def test_it_serves_what_it_held_while_etcd_is_away(tmp_path: Path) -> None:
    with EtcdProcess(tmp_path / "etcd") as etcd:
        watcher = EtcdCoordinator([etcd.address], PREFIX)
        await watcher.start()
        async with node(tmp_path / "n1", etcd.address, "--node-id", "n1") as (process, address):
            await watcher.create_collection(collection("u1", ["n1"]))
            await watcher.close()
            async with grpc.aio.insecure_channel(address) as channel:
                await write(ShardServiceStub(channel), ["kept"])
            assert (await stopped(process, signal.SIGTERM))[0] == 0
        etcd.kill()
        async with killed_at_the_end() as processes:
            process = await spawned(tmp_path / "n1", etcd.address, "--port", address.rpartition(":")[2])
            processes.append(process)
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = ShardServiceStub(channel)
                request = pb.FetchRequest(collection_uid="u1", ids=["kept"])
                answer = await stub.Fetch(request, timeout=START_TIMEOUT_S, wait_for_ready=True)
                assert [point.id for point in answer.points] == ["kept"]
                assert await write(stub, ["new"]) == 2
                etcd.start()
                assert process.stdout is not None
                async with asyncio.timeout(START_TIMEOUT_S):
                    assert await process.stdout.readline() == f"ready {address}\n".encode()
            assert (await stopped(process, signal.SIGTERM))[0] == 0


@pytest.mark.cluster
async def test_it_stops_while_it_still_waits_for_etcd(tmp_path: Path) -> None:
    async with killed_at_the_end() as processes:
        waiting = await spawned(tmp_path / "n1", "127.0.0.1:1")
        processes.append(waiting)
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (tmp_path / "n1" / "node.json").exists():  # noqa: ASYNC110 (another process makes it)
                await asyncio.sleep(0.02)
            second = await spawned(tmp_path / "n1", "127.0.0.1:1")
            processes.append(second)
            assert await second.wait() == 1, "another process uses the folder"
        assert await stopped(waiting, signal.SIGTERM) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: --data, --etcd"),
        (["--host", "::"], "--advertise must say"),
        (["--port", "70000"], "'70000' is not a port"),
        (["--search-threads", "-1"], "at least 0"),
        (["--seal-age-s", "nan"], "number of seconds"),
        (["--log-level", "loud"], "'loud' is none of"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--data", "d", "--etcd", "127.0.0.1:1"] if arguments else []
    with pytest.raises(SystemExit) as caught:
        parse([*rest, *arguments], {})
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_arguments_come_from_the_environment_too() -> None:
    environment = {
        "VECTORFLEET_DATA": "/d",
        "VECTORFLEET_ETCD": "a:1,b:2",
        "VECTORFLEET_PORT": "7",
        "VECTORFLEET_HOST": "::",
        "VECTORFLEET_ADVERTISE": "me:7",
    }
    parsed = parse(["--port", "8"], environment)
    assert (parsed.data, parsed.etcd, parsed.port, parsed.advertise) == (Path("/d"), "a:1,b:2", 8, "me:7")
