"""A real etcd of a test's own, which the test may kill, stop for a while, and start again with its data."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.waiting import until
from vectorfleet.local.etcd_binary import etcd_binary, etcd_command


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment; etcd cannot choose its own."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


async def eventually(condition: Callable[[], object], within_s: float = 20) -> None:
    """Waits on the event loop until the condition is true; raises `TimeoutError`."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # it looks at several processes: there is no event to wait for
            await asyncio.sleep(0.02)


class EtcdProcess:
    """One member. `start` waits until its port is open; use it as a context manager."""

    def __init__(self, data: Path, *arguments: str, ports: tuple[int, int] | None = None, name: str = "m0") -> None:
        """Not started.

        Args:
            data: its folder; its log stands beside it.
            arguments: further ones; they win over ours.
            ports: for clients and for peers; None: free ones.
            name: of the member.
        """
        self.data = data
        client, peer = ports or free_ports(2)
        self.port = client
        self.address = f"127.0.0.1:{client}"
        self._command = [*etcd_command(data, client, peer, name), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EtcdProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def launch(self) -> None:
        """Starts it and does not wait."""
        with self.data.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def start(self) -> None:
        """Starts it, with the data that it had."""
        self.launch()
        self.wait_open()

    def wait_open(self) -> None:
        """Waits until it takes connections."""
        until(self._open, within_s=30, what=f"etcd at {self.address}")

    def kill(self) -> None:
        """kill -9. Does nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def hang(self) -> None:
        """Stops it in its tracks: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends `hang`."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Removes its data; it must not run."""
        shutil.rmtree(self.data)

    def ctl(self, *arguments: str, tls: Sequence[str] = ()) -> str:
        """Runs etcdctl on it and returns what it printed."""
        scheme = "https" if tls else "http"
        command = [str(etcd_binary("etcdctl")), f"--endpoints={scheme}://{self.address}", *tls, *arguments]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _open(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.data.with_suffix(".log").read_text()[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
