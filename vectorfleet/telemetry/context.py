"""What a call brings along in its metadata: a request id, and W3C trace context (https://www.w3.org/TR/trace-context/). Pure.

Both come from strangers and go into logs and on to other processes: whatever is not of the exact form is as good as absent.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = "x-request-id"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}", re.ASCII)
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,400})?", re.ASCII)
_STATE: Final = re.compile(r"[\x20-\x7e]{1,512}", re.ASCII)
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Whose child a call is."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    sampled: bool
    state: str = ""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """As it travels."""
        parent = (TRACEPARENT, f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}")
        return (parent, (TRACESTATE, self.state)) if self.state else (parent,)


@dataclass(frozen=True, slots=True)
class Incoming:
    """What was found in a call's metadata."""

    request_id: str
    """"": none that can be used."""
    parent: TraceContext | None


def read(metadata: Iterable[tuple[str, str | bytes]]) -> Incoming:
    """Reads a call's metadata; never raises."""
    request_id = parent = state = ""
    parents = 0
    for key, value in metadata:
        if not isinstance(value, str):
            continue
        if key == REQUEST_ID:
            request_id = value if _SANE_ID.fullmatch(value) else ""
        elif key == TRACEPARENT:
            parent, parents = value, parents + 1
        elif key == TRACESTATE:
            state = f"{state},{value}" if state else value
    return Incoming(request_id, _trace_context(parent, state) if parents == 1 else None)


def _trace_context(parent: str, state: str) -> TraceContext | None:
    match = _PARENT.fullmatch(parent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    sound = state if _STATE.fullmatch(state) else ""
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), sound)


class RequestIds:
    """Makes ids that no other process makes: a random beginning and a number."""

    def __init__(self) -> None:
        self._beginning = secrets.token_hex(5)
        self._numbers = itertools.count(1)

    def make(self) -> str:
        """Makes one."""
        return f"{self._beginning}-{next(self._numbers):x}"

    def number(self) -> str:
        """Makes one that is unique in this process alone."""
        return format(next(self._numbers), "x")
