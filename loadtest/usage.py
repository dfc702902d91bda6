"""CPU time and memory of a cluster's processes, and of the process that asks, over a stretch of time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from loadtest.processes import cpu_s
from vectorfleet.local import LocalCluster

CLIENT = "client"
"""The name of the process that asks."""


@dataclass
class Usage:
    """What each process used, by name."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    def of(self, prefix: str) -> float:
        """CPU seconds of all processes whose name begins so."""
        return sum(seconds for name, seconds in self.cpu_s.items() if name.startswith(prefix))

    @property
    def servers_s(self) -> float:
        """CPU seconds of routers and shard servers."""
        return self.of("router") + self.of("node")


@contextlib.contextmanager
def measured(fleet: LocalCluster) -> Iterator[Usage]:
    """Fills a `Usage` when the block ends."""
    processes = {name: psutil.Process(child.pid) for name, child in fleet.processes.items()}
    processes[CLIENT] = psutil.Process()
    before = {name: cpu_s(process) for name, process in processes.items()}
    usage = Usage()
    yield usage
    usage.cpu_s.update({name: cpu_s(process) - before[name] for name, process in processes.items()})
