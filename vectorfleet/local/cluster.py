"""`LocalCluster`: etcd, shard servers and routers on this machine, as the child processes that a real cluster consists of.

Names: `etcd`, `node-0` …, `router-0` …. All data lives below one folder (`etcd/`, `node-0/` …, `logs/`), locked while the cluster
runs, so that the next start finds it; nodes may keep backups in `backups/` beside it. etcd and routers keep their ports
while this object lives; nodes register wherever the kernel puts them. Nothing is watched here: `supervision` does that for
`vectorfleet up`, tests want the dead to stay dead.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from vectorfleet._client import Client
from vectorfleet._security import Security
from vectorfleet.errors import VectorfleetError
from vectorfleet.local.child import Child
from vectorfleet.local.data_lock import DataLock
from vectorfleet.local.etcd_binary import etcd_command
from vectorfleet.local.failure import LocalClusterError
from vectorfleet.local.installed import servers_root
from vectorfleet.local.ports import bind_failure, free_ports, is_free
from vectorfleet.local.secure import LocalSecurity
from vectorfleet.memory_limit import memory_bytes

READY_TIMEOUT_S: Final = 90.0
STOP_GRACE_S: Final = 10.0
NODES_NICENESS: Final = 5
"""A router that waits for a core behind its nodes hears of calls when their time is up: where they share one, it comes first."""
_PROBE_TIMEOUT_S: Final = 2.0
_PORT_TRIES: Final = 5
_PORT_MAX: Final = 65_535
_POLL_S: Final = 0.05
_CONNECTIONS_A_ROUTER: Final = 8
_NODES_SHARE: Final = 0.8
"""Of the machine's memory, for all nodes together; they hold the data."""
_ROUTERS_SHARE: Final = 0.1
_LOOPBACK: Final = "127.0.0.1"
_OF_ONE_PROCESS: Final = ("VECTORFLEET_ADVERTISE", "VECTORFLEET_HEALTH_PORT", "VECTORFLEET_TLS_")
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 (only recognised)


class LocalCluster:
    """A cluster of real processes. As a context manager it starts and stops.

    >>> with LocalCluster(Path("data"), nodes=2) as cluster, Client(cluster.address) as client:
    ...     client.create_collection("films", dim=3)

    Args:
        data: the folder of all data; made where it is absent, continued where it is there.
        nodes: shard servers.
        routers: routers.
        host: where routers listen; nodes and etcd listen on 127.0.0.1.
        port: of the first router, the next ones take the ports above; 0: free ones.
        one_port: all routers listen on that one port, and the kernel gives each connection to one of them.
        shard_args: further arguments of each `python -m shard_server`.
        router_args: further arguments of each `python -m router`.
        secure: TLS on every hop, an admin key and a user in etcd (files in `tls/`), an audit log; `security` is for clients.
        log: is told, a line at a time, what happens.
    """

    def __init__(
        self,
        data: Path | str,
        *,
        nodes: int = 2,
        routers: int = 1,
        host: str = _LOOPBACK,
        port: int = 0,
        one_port: bool = False,
        shard_args: Sequence[str] = (),
        router_args: Sequence[str] = (),
        secure: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if nodes < 1 or routers < 1:
            raise LocalClusterError("a cluster has at least one node and one router")
        if not one_port and port + routers - 1 > _PORT_MAX:
            raise LocalClusterError(f"{routers} routers need the ports from {port} on, but the last one is {_PORT_MAX}")
        self.data: Final = Path(data).absolute()
        self._host = host
        self._one_port = one_port
        self._router_ports = [port + number if port and not one_port else port for number in range(routers)]
        self._shard_args = tuple(shard_args)
        self._router_args = tuple(router_args)
        self._secure = LocalSecurity(self.data / "tls", self.data / "logs" / "audit.jsonl") if secure else None
        self._log = log
        self._lock = DataLock(self.data)
        self._etcd_ports: tuple[int, int] | None = None
        self._environment: dict[str, str] = {}
        # Children die with the thread that started them: this one, which lives as long as this object.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="vectorfleet-spawner")
        self._nodes = [f"node-{number}" for number in range(nodes)]
        self._routers = [f"router-{number}" for number in range(routers)]
        names = ["etcd", *self._nodes, *self._routers]
        self.processes: Final[Mapping[str, Child]] = MappingProxyType(
            {name: Child(name, self.data / "logs", self._spawner) for name in names}
        )
        """By name; each has `.pid` (None while it does not run), `.address` and `.log_path`."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """host:port of the first router, as a client on this machine reaches it."""
        return self._reachable(self.processes["router-0"].address)

    @property
    def security(self) -> Security | None:
        """What a client of a secure cluster needs; None: nothing."""
        return self._secure.client if self._secure is not None else None

    @property
    def client_config(self) -> Path | None:
        """A configuration file that names, for clients of a secure cluster that runs, what they need; None: nothing."""
        return self._secure.client_config if self._secure is not None else None

    @property
    def etcd_address(self) -> str:
        """host:port of etcd."""
        return self.processes["etcd"].address

    def start(self) -> None:
        """Starts all processes; returns when every router sees every node.

        Raises:
            LocalClusterError: something is missing, a port or the data folder is taken, or a process did not become ready. What
                was started is stopped again.
        """
        self._environment = _environment(servers_root())
        self._refuse_fewer_nodes()
        self._lock.acquire()
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops all processes, those first that depend on others; may be called twice, and `start` after it."""
        for names in (self._routers, self._nodes, ["etcd"]):
            for name in names:
                self.processes[name].terminate()
            deadline_s = time.monotonic() + STOP_GRACE_S
            for name in names:
                self.processes[name].wait_end(deadline_s - time.monotonic())
        self._lock.release()

    def kill(self, name: str) -> None:
        """Ends a process as `kill -9` does; it stays dead until `restart`."""
        self._child(name).kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process."""
        self._child(name).signal(number)

    def restart(self, name: str) -> None:
        """Starts a process again, on the same data; stops it first where it runs. Returns when it is ready.

        Raises:
            LocalClusterError: it did not become ready.
        """
        child = self._child(name)
        child.terminate()
        child.wait_end(STOP_GRACE_S)
        self.spawn(name)
        self._wait_ready(name)

    def spawn(self, name: str) -> None:
        """Starts a process that does not run, and does not wait for it."""
        child = self._child(name)
        if name == "etcd":
            assert self._etcd_ports is not None, "start() chose them"
            flags = self._secure.etcd_flags() if self._secure is not None else []
            command = _etcd_command(self.data / "etcd", self._etcd_ports, flags)
            child.start(command, self._environment, f"{_LOOPBACK}:{self._etcd_ports[0]}")
        else:
            niceness = NODES_NICENESS if name in self._nodes else 0
            child.start(self._command(name), self._environment, niceness=niceness)

    def _child(self, name: str) -> Child:
        if name not in self.processes:
            raise LocalClusterError(f"there is no process {name!r}; there are {', '.join(self.processes)}")
        return self.processes[name]

    def _start_all(self) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        self._choose_router_ports()
        if self._secure is not None:
            self._secure.prepare(self._hosts())
        self._log("starting etcd")
        self._start_etcd()
        if self._secure is not None:
            self._secure.enable_users(self.etcd_address)
        self._log("starting " + ", ".join((*self._nodes, *self._routers)))
        for name in (*self._nodes, *self._routers):
            self.spawn(name)
        for name in (*self._nodes, *self._routers):
            self._wait_ready(name)
        if self._secure is not None:
            self._secure.write_client_config(self._router_addresses())
        # Of routers on one port nobody can choose which one answers: so many connections reach every one of them.
        connections = _CONNECTIONS_A_ROUTER * len(self._routers) if self._one_port else 1
        for address in self._router_addresses() * connections:
            self._wait_for_nodes(address, deadline_s)

    def _choose_router_ports(self) -> None:
        for number, port in enumerate(self._router_ports):
            failure = bind_failure(self._host, port)
            if failure is not None:
                raise LocalClusterError(_why_not_there(self._host, port, failure)) from failure
            if not port:
                (self._router_ports[number],) = free_ports(1, self._host)
        if self._one_port:
            self._router_ports = self._router_ports[:1] * len(self._router_ports)

    def _router_addresses(self) -> list[str]:
        """As clients on this machine reach the routers; without repetition."""
        return list(dict.fromkeys(self._reachable(self.processes[name].address) for name in self._routers))

    def _start_etcd(self) -> None:
        for attempt in range(1, _PORT_TRIES + 1):
            if self._etcd_ports is None:
                client, peer = free_ports(2)
                self._etcd_ports = (client, peer)
            try:
                self.spawn("etcd")
                self._wait_ready("etcd")
            except LocalClusterError:
                taken = [port for port in self._etcd_ports if not is_free(_LOOPBACK, port)]
                if not taken or attempt == _PORT_TRIES:
                    raise
                self._etcd_ports = None  # somebody was faster
            else:
                return

    def _wait_ready(self, name: str) -> None:
        child = self.processes[name]
        child.wait_ready(READY_TIMEOUT_S, (lambda: _etcd_is_healthy(child, self._secure)) if name == "etcd" else None)

    def _wait_for_nodes(self, router: str, deadline_s: float) -> None:
        wanted = set(self._nodes)
        failure = "it did not answer"
        with Client(router, timeout=_PROBE_TIMEOUT_S, security=self.security or Security("")) as client:
            while time.monotonic() < deadline_s:
                try:
                    nodes = [node for node in client.cluster().nodes if node.live]
                except VectorfleetError as error:
                    failure = str(error)
                else:
                    absent = wanted - {node.id for node in nodes}
                    if not absent:
                        self._warn_of_unknown({name for node in nodes for name in node.unknown_collections})
                        return
                    failure = f"it does not see {', '.join(sorted(absent))}"
                time.sleep(_POLL_S)
        raise LocalClusterError(f"the router on {router} was not ready within {READY_TIMEOUT_S:g} s: {failure}")

    def _warn_of_unknown(self, collections: set[str]) -> None:
        if collections:
            named = ", ".join(sorted(collections))
            self._log(f"warning: the nodes hold {named}, of which etcd knows nothing: was {self.data / 'etcd'} lost?")

    def _command(self, name: str) -> list[str]:
        kind, _, number = name.partition("-")
        # -P: whatever lies in the folder that the user happens to stand in must not be taken for a server.
        python = [sys.executable, "-P", "-m"]
        etcd = ["--etcd", self.etcd_address]
        if self._secure is not None:
            etcd += self._secure.server_flags("shard" if kind == "node" else "router")
        if kind == "node":
            own = ["--data", str(self.data / name), "--host", _LOOPBACK, "--port", "0", "--node-id", name]
            backups = ["--backup-root", str(self.data / "backups")]
            memory = _memory_limit(_NODES_SHARE, len(self._nodes))
            return [*python, "shard_server", *own, *etcd, *backups, *memory, *self._shard_args]
        own = ["--host", self._host, "--port", str(self._router_ports[int(number)]), "--router-id", name]
        own += ["--reuse-port"] if self._one_port else []
        return [*python, "router", *own, *etcd, *_memory_limit(_ROUTERS_SHARE, len(self._routers)), *self._router_args]

    def _hosts(self) -> list[str]:
        own = [] if self._host in _EVERYWHERE else [self._host.strip("[]")]
        return list(dict.fromkeys(("localhost", _LOOPBACK, "::1", socket.gethostname(), *own)))

    def _refuse_fewer_nodes(self) -> None:
        there = nodes_in(self.data)
        if there > len(self._nodes):
            raise LocalClusterError(
                f"the data in {self.data} belongs to {there} nodes; with {len(self._nodes)} a part of it would be missing"
            )

    def _reachable(self, address: str) -> str:
        host, _, port = address.rpartition(":")
        return f"{_LOOPBACK}:{port}" if host in _EVERYWHERE else address


def _memory_limit(share: float, processes: int) -> list[str]:
    """What one of several processes on this machine may use: each would take all of it for its own otherwise."""
    return ["--memory-limit", str(int(memory_bytes() * share / processes))]


def _why_not_there(host: str, port: int, failure: OSError) -> str:
    if failure.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another one"
    if failure.errno == errno.EADDRNOTAVAIL or isinstance(failure, socket.gaierror):
        return f"{host} is no address of this machine ({failure.strerror}): choose one where routers can listen"
    return f"routers cannot listen on {host}:{port}: {failure.strerror}"


def nodes_in(data: Path) -> int:
    """Says how many nodes have data in a folder: one more than the highest number."""
    matches = (re.fullmatch(r"node-(\d+)", path.name) for path in _entries(data))
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in folder.iterdir() if path.is_dir())


def _environment(root: Path) -> dict[str, str]:
    """Our own environment, with the servers' packages findable from any folder and without what would make nodes alike."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_ONE_PROCESS)}
    paths = [str(root), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _etcd_command(data: Path, ports: tuple[int, int], tls: Sequence[str]) -> list[str]:
    try:
        return etcd_command(data, *ports, tls=tls)
    except FileNotFoundError as error:
        raise LocalClusterError(str(error)) from error


def _etcd_is_healthy(child: Child, secure: LocalSecurity | None) -> bool:
    # Whoever answers on the port must be our process, not another's that took it first.
    if child.pid is None:
        return False
    connection = (
        http.client.HTTPConnection(child.address, timeout=_PROBE_TIMEOUT_S)
        if secure is None
        else secure.etcd_connection(child.address, _PROBE_TIMEOUT_S)
    )
    try:
        connection.request("GET", "/health")
        return b'"true"' in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
