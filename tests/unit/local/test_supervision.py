"""Which process is started again, and when, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Mapping

from vectorfleet.local import LocalClusterError
from vectorfleet.local.supervision import PAUSE_MAX_S, STEADY_S, RestartTimes, Supervisor


class FakeChild:
    def __init__(self) -> None:
        self.pid: int | None = 1
        self.exit_code: int | None = None

    def die(self) -> None:
        self.pid, self.exit_code = None, -9


class FakeProcesses:
    """A cluster whose children live and die as the test says."""

    def __init__(self, *names: str) -> None:
        self.children = {name: FakeChild() for name in names}
        self.spawned: list[str] = []
        self.refuse = False

    @property
    def processes(self) -> Mapping[str, FakeChild]:
        return self.children

    def spawn(self, name: str) -> None:
        self.spawned.append(name)
        if self.refuse:
            raise LocalClusterError("no")
        self.children[name].pid = 2


def test_at_once_then_with_growing_pauses() -> None:
    times = RestartTimes()
    pauses = []
    now_s = 1_000.0
    for _ in range(12):
        due_s = times.died(now_s)
        assert times.died(now_s + 0.1) == due_s, "one death is noted once"
        pauses.append(due_s - now_s)
        now_s = due_s
        times.started(now_s)
    assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S


def test_a_steady_process_is_forgiven() -> None:
    times = RestartTimes()
    for now_s in (100.0, 101.0, 102.0):
        times.died(now_s)
        times.started(now_s)
    assert times.died(102.0 + STEADY_S) == 102.0 + STEADY_S


def test_the_dead_are_started_again_and_the_living_left_alone() -> None:
    cluster = FakeProcesses("etcd", "node-0", "node-1")
    told: list[str] = []
    supervisor = Supervisor(cluster, told.append)
    supervisor.step(1_000.0)
    assert not cluster.spawned
    cluster.children["node-1"].die()
    supervisor.step(1_000.2)
    assert cluster.spawned == ["node-1"]
    cluster.children["node-1"].die()
    for step in range(3):
        supervisor.step(1_000.4 + step / 10)
    assert cluster.spawned == ["node-1"], "it waits"
    supervisor.step(1_000.95)
    assert cluster.spawned == ["node-1", "node-1"]
    assert told == [
        "node-1 died (exit code -9); starting it again in 0.0 s",
        "node-1 died (exit code -9); starting it again in 0.5 s",
    ]


def test_one_that_cannot_be_started_is_tried_again_later() -> None:
    cluster = FakeProcesses("etcd", "node-0")
    told: list[str] = []
    supervisor = Supervisor(cluster, told.append)
    cluster.refuse = True
    for child in cluster.children.values():
        child.die()
    supervisor.step(1_000.0)
    assert cluster.spawned == ["etcd", "node-0"], "one failure does not hold up the others"
    supervisor.step(1_000.1)
    assert len(cluster.spawned) == 2
    cluster.refuse = False
    supervisor.step(1_000.7)
    assert cluster.spawned == ["etcd", "node-0"] * 2
    assert "node-0 cannot be started: no" in told
