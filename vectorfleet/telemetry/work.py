"""What a process did for one call, and when: a small tree that is always kept, for it costs a few microseconds.

It is the one source of a slow query's line and of the spans of a call that is traced: both are made of it afterwards, so that a
call which is neither pays for clock readings alone. A `Work` has stages (`lap`: one behind another) and parts (`part`: works of
their own, which may overlap). What several calls share, such as a batch, is a part of each of them.

Invariants: stages and parts are bounded, whatever a stream goes on to do; times are of `time.monotonic_ns`. A work is
written by one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Protocol, Self

from vectorfleet.errors import VectorfleetError

STAGES_MAX: Final = 128
PARTS_MAX: Final = 128

Metadata = tuple[tuple[str, str], ...]


_CURRENT: ContextVar[Work | None] = ContextVar("vectorfleet work", default=None)


class Span(Protocol):
    """The trace's side of a work: exists only where the call is traced."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    @property
    def headers(self) -> Metadata:
        """The W3C trace context for whoever is called from here."""

    def child(self, work: Work, shared_with: Sequence[Span]) -> Span:
        """Begins the span of a part, so that its id can travel."""

    def finish(self, work: Work) -> None:
        """Ends the span; adds those of the work's stages, and of parts that have none of their own."""


class Work:
    """Something that takes time."""

    # fmt: off
    __slots__ = (
        "_at_ns", "_token", "begun_ns", "calls_out", "ended_ns", "error", "facts", "headers", "name", "parts",
        "request_id", "span", "stages",
    )
    # fmt: on

    def __init__(self, name: str, request_id: str = "", headers: Metadata = (), begun_ns: int = 0) -> None:
        """Begins now.

        Args:
            name: what is done.
            request_id: of the call that it is done for.
            headers: what calls to other processes carry on its behalf, where it is not traced.
            begun_ns: an earlier beginning.
        """
        self.name = name
        self.request_id = request_id
        self.headers = headers
        self.begun_ns = self._at_ns = begun_ns or time.monotonic_ns()
        self.ended_ns = 0
        self.calls_out = False
        """Whether it is a call to another process."""
        self.error = ""
        self.facts: dict[str, Any] = {}
        """For people: numbers, names and yes or no. Never a vector, a text, a payload or a filter."""
        self.stages: list[tuple[str, int, int]] = []
        """(name, from, to); nanoseconds."""
        self.parts: list[Work] = []
        self.span: Span | None = None
        self._token: Token[Work | None] | None = None

    def __enter__(self) -> Self:
        """Makes it the current one, for this task and for those that it starts."""
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends it."""
        assert self._token is not None
        _CURRENT.reset(self._token)
        self.end("" if error is None else reason_of(error))

    def lap(self, stage: str) -> None:
        """A stage ends here; it began where the last one ended. Laps of one stage in a row become one."""
        now_ns = time.monotonic_ns()
        stages = self.stages
        if stages and stages[-1][0] == stage and stages[-1][2] == self._at_ns:
            stages[-1] = (stage, stages[-1][1], now_ns)
        elif len(stages) < STAGES_MAX:
            stages.append((stage, self._at_ns, now_ns))
        self._at_ns = now_ns

    def skip(self) -> None:
        """The next stage begins here: the time before it is told otherwise, or waited."""
        self._at_ns = time.monotonic_ns()

    def part(self, name: str, *, calls_out: bool = False) -> Work:
        """Begins a part of this; one that calls another process has a span at once, whose id travels along."""
        part = Work(name, self.request_id, self.headers)
        part.calls_out = calls_out
        if len(self.parts) < PARTS_MAX:
            self.parts.append(part)
            if calls_out and self.span is not None:
                part.span = self.span.child(part, ())
        return part

    def end(self, error: str = "") -> None:
        """Ends it, once: with a reason of docs/errors.md, or without."""
        if self.ended_ns:
            return
        self.ended_ns = time.monotonic_ns()
        self.error = error
        if self.span is not None:
            self.span.finish(self)

    @property
    def took_ns(self) -> int:
        """How long it took, or takes so far."""
        return (self.ended_ns or time.monotonic_ns()) - self.begun_ns

    @property
    def outgoing(self) -> Metadata:
        """What a call to another process carries: the request's id, and the trace context."""
        mine = (("x-request-id", self.request_id),) if self.request_id else ()
        return mine + (self.headers if self.span is None else self.span.headers)

    @property
    def spent_s(self) -> dict[str, float]:
        """Seconds by stage, all laps of it together."""
        spent: dict[str, float] = {}
        for stage, begun_ns, ended_ns in self.stages:
            spent[stage] = spent.get(stage, 0.0) + (ended_ns - begun_ns) / 1e9
        return spent

    def told(self) -> dict[str, Any]:
        """As JSON has it: for logs."""
        told: dict[str, Any] = {"what": self.name, "ms": _ms(self.took_ns), **self.facts}
        if self.error:
            told["error"] = self.error
        if self.stages:
            told["stages_ms"] = {stage: round(1000 * spent_s, 3) for stage, spent_s in self.spent_s.items()}
        if self.parts:
            told["parts"] = [part.told() for part in self.parts]
        return told


def shared(name: str, works: Sequence[Work]) -> Work:
    """Begins what is done once for several works, at least one.

    Its span belongs to the trace of the first of them that is traced, and links to the others.
    """
    leader = next((work for work in works if work.span is not None), works[0])
    part = Work(name, leader.request_id, leader.headers)
    part.facts["calls"] = len(works)
    for work in works:
        if len(work.parts) < PARTS_MAX:
            work.parts.append(part)
    if leader.span is not None:
        part.span = leader.span.child(
            part, [work.span for work in works if work.span is not None and work is not leader]
        )
    return part


def current() -> Work:
    """The work that this task belongs to; outside of any, one that nobody will look at."""
    return _CURRENT.get() or Work("unserved")


def current_or_none() -> Work | None:
    """The work that this task belongs to."""
    return _CURRENT.get()


def enter(work: Work) -> None:
    """Makes a work the current one for the rest of this task."""
    _CURRENT.set(work)


def outgoing() -> Metadata | None:
    """The metadata of a call that is made within the current work."""
    work = _CURRENT.get()
    return None if work is None else work.outgoing or None


def reason_of(error: BaseException) -> str:
    """The reason under which a work ends that raised."""
    if isinstance(error, VectorfleetError):
        return error.reason
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED"
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"


def _ms(took_ns: int) -> float:
    return round(took_ns / 1e6, 3)
