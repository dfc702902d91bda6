"""Starts children again when they die: what `vectorfleet up` does for as long as it runs.

`RestartTimes` is the policy, without a clock: at once the first time, then with growing pauses while the process keeps dying.
`Supervisor` is the thin shell around it; it never waits for a child to become ready, so that one that hangs holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from vectorfleet.local.failure import LocalClusterError

PAUSE_FIRST_S: Final = 0.5
PAUSE_MAX_S: Final = 30.0
STEADY_S: Final = 60.0
"""A process that ran this long is forgiven its earlier deaths."""


class RestartTimes:
    """When one process is to be started again."""

    def __init__(self) -> None:
        self._deaths = 0
        self._started_s = 0.0
        self._due_s: float | None = None

    def died(self, now_s: float) -> float:
        """Notes a death, once; returns when to start the process again."""
        if self._due_s is None:
            if now_s - self._started_s >= STEADY_S:
                self._deaths = 0
            pause = 0.0 if self._deaths == 0 else min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(self._deaths - 1, 10))
            self._deaths += 1
            self._due_s = now_s + pause
        return self._due_s

    def started(self, now_s: float) -> None:
        """Notes a start."""
        self._started_s = now_s
        self._due_s = None


class _Child(Protocol):
    @property
    def pid(self) -> int | None: ...

    @property
    def exit_code(self) -> int | None: ...


class _Cluster(Protocol):
    @property
    def processes(self) -> Mapping[str, _Child]: ...

    def spawn(self, name: str) -> None: ...


class Supervisor:
    """Watches the processes of a cluster that was started.

    Args:
        cluster: the cluster.
        log: is told of every death and every start.
    """

    def __init__(self, cluster: _Cluster, log: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._log = log
        self._times = {name: RestartTimes() for name in cluster.processes}
        self._mourned: set[str] = set()

    def step(self, now_s: float) -> None:
        """Looks after every process once; to be called a few times a second with the monotonic time."""
        for name, child in self._cluster.processes.items():
            if child.pid is not None:
                continue
            due_s = self._times[name].died(now_s)
            if name not in self._mourned:
                self._mourned.add(name)
                self._log(f"{name} died (exit code {child.exit_code}); starting it again in {due_s - now_s:.1f} s")
            if now_s < due_s:
                continue
            self._mourned.discard(name)
            self._times[name].started(now_s)
            try:
                self._cluster.spawn(name)
            except (LocalClusterError, OSError) as error:
                self._log(f"{name} cannot be started: {error}")
