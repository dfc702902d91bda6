"""What is done to a cluster: a plan that a seed decides, and its execution on real processes.

A plan says what is hurt and when: after a while, at the moment a segment or an index is being written, when a codebook has just
been trained, while a replica is backed up, or while a process is still starting. The choice is the seed's; the instant is
the machine's.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vectorfleet.local import LocalCluster

MOMENTS: Final = ("later", "building", "codebook", "snapshot", "starting")
_LOOK_S: Final = 0.001
_LOOKS_END_S: Final = 2.5
"""A moment that does not come by then is not waited for any longer."""
_READY_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One blow."""

    targets: tuple[str, ...]
    freeze: bool
    """SIGSTOP and SIGCONT; else SIGKILL and a new start."""
    moment: str
    delay_s: float
    """Before the blow, from the moment on."""
    down_s: float
    """Until it runs again."""
    after_recovery: bool = True
    """Only once all processes are ready again; else into whatever the fault before has left."""

    def __str__(self) -> str:
        return f"{'freeze' if self.freeze else 'kill'} {'+'.join(self.targets)} ({self.moment})"


def plan(rng: np.random.Generator, names: Sequence[str], count: int) -> list[Fault]:
    """Chooses faults for the processes `names` of a cluster."""
    nodes = tuple(name for name in names if name.startswith("node"))
    routers = tuple(name for name in names if name.startswith("router"))
    groups = [(node,) for node in nodes] * 2
    groups += [nodes, *((router,) for router in routers), ("etcd",), (*nodes, "etcd"), tuple(names)]
    faults = []
    for _ in range(count):
        targets = groups[int(rng.integers(len(groups)))]
        moment = str(rng.choice(MOMENTS, p=[0.3, 0.35, 0.1, 0.05, 0.2]))
        faults.append(
            Fault(
                targets,
                freeze=bool(rng.random() < 0.2) and moment != "starting",
                moment=moment,
                delay_s=float(rng.choice([0.0, 0.0, 1.0])) * float(rng.uniform(0, 1.5)),
                down_s=float(rng.uniform(0, 1.0)),
                after_recovery=bool(rng.random() < 0.75),
            )
        )
    return faults


class Injector:
    """Hurts a cluster, heals it, and notices when a process ended that nobody killed."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._killed: set[str] = set()
        self._frozen: set[str] = set()
        self._clock = threading.Event()
        self.crashed: list[str] = []
        """Processes that ended by themselves, with their exit code."""
        self.hit: list[str] = []
        """Faults whose moment came, as they were done."""

    def do(self, fault: Fault) -> None:
        """Waits for the moment, strikes, and lets the targets run again."""
        came = self._await(fault)
        self._clock.wait(fault.delay_s)
        for name in fault.targets:
            self._strike(name, freeze=fault.freeze)
        self._clock.wait(fault.down_s)
        self._revive(fault.targets)
        if fault.moment == "starting":
            self._clock.wait(fault.delay_s)
            for name in fault.targets:
                self._strike(name, freeze=False)
            self._revive(fault.targets)
        if came:
            self.hit.append(str(fault))

    def heal(self) -> None:
        """Has every process run; returns when all are ready.

        Raises:
            LocalClusterError: one does not become ready.
        """
        self._revive(tuple(self._cluster.processes))
        for name, process in self._cluster.processes.items():
            if name != "etcd":  # nodes and routers are not ready before it is
                process.wait_ready(_READY_S)

    def _await(self, fault: Fault) -> bool:
        data = self._cluster.data
        looks: dict[str, Callable[[], Iterator[Path]]] = {
            "building": lambda: (
                p for name in fault.targets for p in (data / name).glob("replicas/*/*/segments/**/*.building")
            ),
            "snapshot": lambda: data.glob("node-*/replicas/*/*/snapshots/*"),
            "codebook": lambda: data.glob("node-*/codebooks/*/*"),
        }
        look = looks.get(fault.moment)
        if look is None:
            return True
        if fault.moment == "building" and not any(name.startswith("node") for name in fault.targets):
            return False
        before = set(self._seen(look))
        end_s = time.monotonic() + _LOOKS_END_S
        while time.monotonic() < end_s:
            if set(self._seen(look)) - before:
                return True
            self._clock.wait(_LOOK_S)
        return False

    @staticmethod
    def _seen(look: Callable[[], Iterator[Path]]) -> list[Path]:
        with contextlib.suppress(OSError):  # folders come and go under the walk
            return list(look())
        return []

    def _strike(self, name: str, *, freeze: bool) -> None:
        process = self._cluster.processes[name]
        if process.pid is None and name not in self._killed:
            self.crashed.append(f"{name} ended by itself with {process.exit_code}")
        if freeze:
            self._cluster.signal(name, signal.SIGSTOP)
            self._frozen.add(name)
        else:
            self._cluster.kill(name)
            self._killed.add(name)
            self._frozen.discard(name)

    def _revive(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._frozen:
                self._cluster.signal(name, signal.SIGCONT)
                self._frozen.discard(name)
            if self._cluster.processes[name].pid is None:
                if name not in self._killed:
                    self.crashed.append(f"{name} ended by itself with {self._cluster.processes[name].exit_code}")
                self._killed.discard(name)
                self._cluster.spawn(name)
