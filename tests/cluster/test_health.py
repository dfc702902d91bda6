"""Live and ready are two questions, and each process answers both."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cluster.conftest import StartCluster
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def status(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)


@pytest.mark.parametrize("process", ["router-0", "node-0", "node-1"])
def test_a_running_process_is_live_and_ready(cluster: LocalCluster, process: str) -> None:
    address = cluster.processes[process].address
    names = ["vectorfleet.v1.SearchService" if process == "router-0" else "vectorfleet.internal.v1.ShardService"]
    for service in ["", "liveness", "readiness", *names]:
        assert status(address, service) == SERVING, service
    with pytest.raises(grpc.RpcError) as caught:
        status(address, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0, "SIGTERM ends a process cleanly, ready or not"


@pytest.mark.parametrize("program", ["router", "shard_server"])
def test_without_etcd_a_process_is_live_but_not_ready(program: str, tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    own = ["--data", str(tmp_path / "node")] if program == "shard_server" else []
    with running(program, *own, "--port", str(port), "--etcd", f"127.0.0.1:{nobody}"):
        address = f"127.0.0.1:{port}"
        until(lambda: status(address, "liveness") == SERVING, what="the process is live")
        assert status(address, "readiness") == NOT_SERVING
        assert status(address, "") == NOT_SERVING


def test_ready_again_after_a_restart(start_cluster: StartCluster) -> None:
    cluster = start_cluster(nodes=1)
    for process in ("node-0", "router-0"):
        cluster.kill(process)
        cluster.restart(process)
        address = cluster.processes[process].address
        until(lambda address=address: status(address, "readiness") == SERVING, what=f"{process} is ready")
    cluster.kill("etcd")
    assert status(cluster.processes["router-0"].address, "readiness") == SERVING, "etcd's loss stops no reads"
    assert status(cluster.processes["node-0"].address, "readiness") == SERVING
