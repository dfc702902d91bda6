"""One point id as a register, and the question whether its history is linearizable: pure, and of that question alone.

A step is one call's part in one id: it wrote a value, deleted, or read. An answered step took effect at one instant between its
start and its end. A step whose outcome is unknown has no end: it took effect at some instant after its start, or never. The
history is explained when instants can be chosen so that every answered step saw the state that the steps before it had left.

The search is Wing and Gong's, forward in time, with what is legal and what is still open as its memory ("Testing and Verifying
Concurrent Objects", 1993; and Lowe's just-in-time form of it, 2017). Three facts keep it small, because values are unique:

1. An open read that is legal may be taken at once: it changes nothing, and only gets harder to place.
2. A step of unknown outcome matters only right before a step that needs it. Any other use of it may be left out of an
   explanation, which stays one.
3. Unknown deletes are alike, and so are unknown writes of values that nobody ever read: trying one of them is enough.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

FOREVER: Final = 2**63
CONFIGURATIONS_MAX: Final = 50_000


class Kind(enum.Enum):
    """What a step did."""

    WRITE = "write"
    DELETE = "delete"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Step:
    """A call's part in one id."""

    kind: Kind
    start: int
    end: int
    """`FOREVER`: the outcome is unknown (of a write or a delete)."""
    value: int | None = None
    """Written, or read; None: the id was absent."""
    version: int = 0
    """Of a read: the version that came with the value; 0: none came."""
    existed: bool | None = None
    """Of a delete: whether it found the id; None: it did not say."""
    call: int = -1
    """Which call this was part of."""


class Unexplained(NamedTuple):
    """No order of the steps explains this one."""

    step: Step
    possible: tuple[int | None, ...]
    """The values that the register may have held when everything before the step's end was explained."""


class TooManyOrders(Exception):
    """The history allows more orders than are worth trying."""


class _State(NamedTuple):
    value: int | None
    version: int
    """The highest version known to have taken effect."""
    taken: frozenset[int]
    """Open steps that have taken effect."""


def unexplained(steps: Sequence[Step]) -> Unexplained | None:
    """Decides whether a register that was absent at first explains all steps; returns the first step that shows that it cannot.

    Raises:
        TooManyOrders: it cannot be decided within reason.
    """
    return _Search(steps).run()


class _Search:
    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._version_of: dict[int, int] = {}
        self._read: set[int] = set()
        for step in steps:
            if step.kind is Kind.READ and step.value is not None:
                self._read.add(step.value)
                if step.version:
                    self._version_of.setdefault(step.value, step.version)
        self._open: set[int] = set()
        self._unknown_writes: dict[int | None, int] = {}
        self._unknown_deletes: list[int] = []

    def run(self) -> Unexplained | None:
        twice = self._seen_under_two_versions()
        if twice is not None:
            return Unexplained(twice, (twice.value,))
        states = {_State(None, 0, frozenset())}
        for number, ends in self._events():
            step = self._steps[number]
            if not ends:
                states = self._begin(number, step, states)
                continue
            after = self._end(number, states)
            if not after:
                return Unexplained(step, tuple({state.value for state in states}))
            if len(after) > CONFIGURATIONS_MAX:
                raise TooManyOrders
            self._open.discard(number)
            states = {state._replace(taken=state.taken - {number}) for state in after}
        return None

    def _seen_under_two_versions(self) -> Step | None:
        value_of: dict[int, int] = {}
        for step in self._steps:
            if step.kind is Kind.READ and step.value is not None and step.version:
                other_version = self._version_of[step.value] != step.version
                if other_version or value_of.setdefault(step.version, step.value) != step.value:
                    return step
        return None

    def _events(self) -> Iterable[tuple[int, bool]]:
        """(step, whether it ends), in time; of events at one time the starts come first, which allows more orders."""
        events = [(step.start, False, number) for number, step in enumerate(self._steps)]
        events += [(step.end, True, number) for number, step in enumerate(self._steps) if step.end != FOREVER]
        return ((number, ends) for _, ends, number in sorted(events))

    def _begin(self, number: int, step: Step, states: set[_State]) -> set[_State]:
        if step.end != FOREVER:
            self._open.add(number)
            return {self._with_legal_reads(state) for state in states} if step.kind is Kind.READ else states
        if step.kind is Kind.WRITE:
            self._unknown_writes[step.value] = number
        elif step.kind is Kind.DELETE:
            self._unknown_deletes.append(number)
        return states

    def _end(self, number: int, states: set[_State]) -> set[_State]:
        """The states in which step `number` has taken effect, after as many other open steps as it takes."""
        done = {state for state in states if number in state.taken}
        todo = list(states - done)
        seen = set(todo)
        while todo:
            state = todo.pop()
            for other in self._open - state.taken:
                for following in self._after(state, other):
                    if following in seen:
                        continue
                    seen.add(following)
                    if number in following.taken:
                        done.add(following)
                    else:
                        todo.append(following)
            if len(seen) > CONFIGURATIONS_MAX:
                raise TooManyOrders
        return done

    def _after(self, state: _State, number: int) -> Iterator[_State]:
        """The states after an open step, where need be with a step of unknown outcome right before it."""
        step = self._steps[number]
        for before in (state, *self._enabling(state, step)):
            if _legal(before, step):
                after = self._changed(before, number)
                if after is not None:
                    yield self._with_legal_reads(after)

    def _enabling(self, state: _State, step: Step) -> Iterator[_State]:
        """The states after one step of unknown outcome without which `step` would not be legal; none where it is legal."""
        if _legal(state, step):
            return
        needs_absence = step.value is None if step.kind is Kind.READ else step.existed is False
        if needs_absence:
            candidates = [number for number in self._unknown_deletes if number not in state.taken][:1]
        elif step.kind is Kind.READ:
            candidates = [number for value, number in self._unknown_writes.items() if value == step.value]
        else:  # a delete that found something
            candidates = [number for number in self._unknown_writes.values() if number not in state.taken]
            unread = [number for number in candidates if self._steps[number].value not in self._read]
            candidates = unread[:1] or candidates
        for number in candidates:
            after = self._changed(state, number) if number not in state.taken else None
            if after is not None:
                yield after

    def _changed(self, state: _State, number: int) -> _State | None:
        """The state after a step; None where it would come after one of a higher version."""
        step = self._steps[number]
        taken = state.taken | {number}
        if step.kind is Kind.READ:
            return state._replace(taken=taken)
        if step.kind is Kind.DELETE:
            return _State(None, state.version, taken)
        version = self._version_of.get(step.value, 0) if step.value is not None else 0
        if version and version <= state.version:
            return None
        return _State(step.value, version or state.version, taken)

    def _with_legal_reads(self, state: _State) -> _State:
        reads = {
            n for n in self._open - state.taken if self._steps[n].kind is Kind.READ and _legal(state, self._steps[n])
        }
        return state._replace(taken=state.taken | reads) if reads else state


def _legal(state: _State, step: Step) -> bool:
    if step.kind is Kind.READ:
        return state.value == step.value
    return step.kind is Kind.WRITE or step.existed is None or step.existed == (state.value is not None)
