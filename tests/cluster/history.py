"""What concurrent clients did and saw, and whether a correct store explains it.

`Recorder` notes every call: its start, its end, its outcome. `check` then holds the whole against docs/guarantees.md, point by
point: each id is a register (register.py), searches, scrolls and gets are reads of the ids that they speak for.

    1  an acknowledged write is never lost                  a read after it sees it, or what was written later
    2  a write without an answer may have happened, once    no end to its interval; a refused one leaves no trace
    3  an acknowledged write is seen by every later search  a read's instant lies within the call
    4  a deleted point stays deleted; no id twice           the same, and counted within each answer
    5  a score and a payload are the vector's own           checked by whoever records (workload.py), as a fault of the call

Not checked, because not promised: an order between different ids (calls are not atomic), and that a search without `exact` finds
everything (what it does find must be true).
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tests.cluster.register import FOREVER, Kind, Step, TooManyOrders, unexplained

Outcome = Literal["ok", "failed", "unknown"]


@dataclass(slots=True)
class Call:
    """One attempt of one client; times are monotonic nanoseconds."""

    client: str
    operation: str
    start: int = 0
    end: int = 0
    outcome: Outcome = "unknown"
    error: str = ""
    """The reason of a call that was not answered."""
    wrote: dict[str, int] = field(default_factory=dict)
    """id → the value that it was to hold; no value is ever written twice."""
    deleted: tuple[str, ...] = ()
    deleted_count: int = -1
    """How many of them existed, as it was answered."""
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """id → (value, version; 0: no version was shown)."""
    absent: tuple[str, ...] = ()
    """Ids that the answer speaks for, and does not have."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the answer by itself."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What no correct store could have answered."""

    what: str
    point: str = ""
    calls: tuple[int, ...] = ()
    """The calls that touched the point, in time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check."""

    violations: tuple[Violation, ...]
    undecided: tuple[str, ...]
    """Ids whose history allows too many orders to try them all."""


class Recorder:
    """Collects the calls of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[Call] = []

    def add(self, call: Call) -> None:
        """Keeps a call that is over."""
        with self._lock:
            self.calls.append(call)

    def acknowledged_writes(self) -> int:
        """How many writes were acknowledged so far."""
        with self._lock:
            return sum(call.outcome == "ok" and bool(call.wrote or call.deleted) for call in self.calls)


def now() -> int:
    """The clock of all calls."""
    return time.monotonic_ns()


def check(calls: Sequence[Call]) -> Verdict:
    """Decides whether a correct store explains all calls; every point was absent at first."""
    violations = [
        Violation(f"{call.operation} of {call.client}: {fault}", calls=(number,))
        for number, call in enumerate(calls)
        for fault in call.faults
    ]
    violations += _refused_yet_seen(calls)
    undecided = []
    for point, steps in _by_point(calls).items():
        try:
            found = unexplained(steps)
        except TooManyOrders:
            undecided.append(point)
            continue
        if found is not None:
            violations.append(_described(point, found.step, found.possible, steps, calls))
    return Verdict(tuple(violations), tuple(undecided))


def summary(calls: Iterable[Call]) -> str:
    """Counts calls by operation and outcome, in one line."""
    counted = Counter((call.operation, call.outcome) for call in calls)
    parts = defaultdict(list)
    for (operation, outcome), count in sorted(counted.items()):
        parts[operation].append(f"{count} {outcome}")
    return "; ".join(f"{operation} {', '.join(counts)}" for operation, counts in parts.items())


def save(path: Path, calls: Iterable[Call], verdict: Verdict) -> None:
    """Writes one JSON object a line: first the verdict, then the calls in the order in which violations number them."""
    lines = [json.dumps({"violations": [asdict(one) for one in verdict.violations], "undecided": verdict.undecided})]
    lines += [json.dumps(asdict(call)) for call in calls]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(path: Path) -> list[Call]:
    """Reads the calls of a saved history, to check them again."""
    calls = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        stored = json.loads(line)
        seen = {point: (value, version) for point, (value, version) in stored.pop("seen").items()}
        pairs = {"deleted": tuple(stored.pop("deleted")), "absent": tuple(stored.pop("absent"))}
        calls.append(Call(**stored, **pairs, seen=seen))
    return calls


def _by_point(calls: Sequence[Call]) -> Mapping[str, list[Step]]:
    steps: defaultdict[str, list[Step]] = defaultdict(list)
    for number, call in enumerate(calls):
        if call.outcome == "failed":
            continue
        end = call.end if call.outcome == "ok" else FOREVER
        for point, value in call.wrote.items():
            steps[point].append(Step(Kind.WRITE, call.start, end, value, call=number))
        existed = {0: False, len(call.deleted): True}.get(call.deleted_count) if call.outcome == "ok" else None
        for point in call.deleted:
            steps[point].append(Step(Kind.DELETE, call.start, end, existed=existed, call=number))
        for point, (value, version) in call.seen.items():
            steps[point].append(Step(Kind.READ, call.start, call.end, value, version, call=number))
        for point in call.absent:
            steps[point].append(Step(Kind.READ, call.start, call.end, call=number))
    return steps


def _refused_yet_seen(calls: Sequence[Call]) -> list[Violation]:
    refused = {value for call in calls if call.outcome == "failed" for value in call.wrote.values()}
    return [
        Violation(f"{call.operation} of {call.client} shows a write that was refused", point, (number,))
        for number, call in enumerate(calls)
        for point, (value, _) in call.seen.items()
        if value in refused
    ]


def _described(
    point: str, step: Step, possible: Sequence[int | None], steps: Sequence[Step], calls: Sequence[Call]
) -> Violation:
    call = calls[step.call]
    told = {
        Kind.READ: "shows it absent" if step.value is None else f"shows value {step.value} of version {step.version}",
        Kind.DELETE: "found it" if step.existed else "did not find it",
        Kind.WRITE: f"wrote value {step.value}",
    }[step.kind]
    held = " or ".join("absent" if value is None else f"value {value}" for value in possible)
    what = f"{call.operation} of {call.client} (call {step.call}) {told}, where a correct store holds: {held}"
    return Violation(what, point, tuple(dict.fromkeys(one.call for one in sorted(steps, key=lambda one: one.start))))
