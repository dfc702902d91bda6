"""Several routers on one port: the kernel gives each connection to one of them, and clients outlive the one that dies."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import vectorfleet
from tests.cluster.conftest import QUICK
from tests.cluster.waiting import until
from vectorfleet.local import LocalCluster

PATIENCE_S = 30.0
CLIENTS_MAX = 64
"""That the kernel gives so many connections to one of two routers: once in 2^63 runs."""
DIM = 8


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalCluster]:
    one = LocalCluster(tmp_path / "data", nodes=1, routers=2, one_port=True, shard_args=QUICK)
    with one:
        yield one


def connections(fleet: LocalCluster, router: str) -> int:
    """How many clients a router has."""
    port = int(fleet.address.rpartition(":")[2])
    found = psutil.Process(fleet.processes[router].pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


class Searching(threading.Thread):
    """A client with a connection of its own, which searches until it is told to stop."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.client = vectorfleet.Client(address, timeout=PATIENCE_S)
        self.answered = 0
        self.failure: Exception | None = None
        self._told_to_end = threading.Event()

    def run(self) -> None:
        try:
            while not self._told_to_end.is_set():
                found = self.client.search("things", vectors=np.eye(DIM)[3], k=1, min_coverage=1.0)
                assert found.ids.tolist() == [["3"]]
                self.answered += 1
        except Exception as failure:
            self.failure = failure
        finally:
            self.client.close()

    def stop(self) -> None:
        self._told_to_end.set()
        self.join()


def answer_on(searching: list[Searching]) -> Callable[[], bool]:
    """Whether each of them has been answered again by now, or has failed."""
    before = [one.answered for one in searching]
    return lambda: all(one.answered > count or one.failure for one, count in zip(searching, before, strict=True))


def test_clients_of_routers_on_one_port_outlive_a_router(fleet: LocalCluster) -> None:
    assert fleet.processes["router-0"].address == fleet.processes["router-1"].address
    with vectorfleet.Client(fleet.address, timeout=PATIENCE_S) as client:
        client.create_collection("things", dim=DIM)
        client.upsert("things", ids=range(DIM), vectors=np.eye(DIM))
    with contextlib.ExitStack() as stack:
        searching: list[Searching] = []
        while not (connections(fleet, "router-0") and connections(fleet, "router-1")):
            assert len(searching) < CLIENTS_MAX, "one router gets no connections"
            searching.append(Searching(fleet.address))
            stack.callback(searching[-1].stop)
            searching[-1].start()
            until(answer_on(searching[-1:]), what="a first answer")
        lost = connections(fleet, "router-0")
        fleet.kill("router-0")
        until(answer_on(searching), what="answers to every client after a router was killed")
        until(lambda: connections(fleet, "router-1") >= lost, what="connections to the router that is left")
        fleet.restart("router-0")
        until(answer_on(searching), what="answers with both routers")
    assert [one.failure for one in searching] == [None] * len(searching)
