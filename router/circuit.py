"""Whether a node that stopped answering is still worth a caller's time: a pure state machine.

A process that hangs, or a machine that vanished, answers nothing: each call to it costs the whole of its deadline.
After a few such calls in a row the circuit opens, and calls pass the node over at once. It never closes by itself:
somebody outside probes the node (nodes.py) and says that it answered.

Only calls that waited long count. A caller with a deadline of 5 ms proves nothing about a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAILURES_TO_OPEN: Final = 3
SLOW_S: Final = 0.5
"""A call counts as unanswered only after this long."""


@dataclass(slots=True)
class Circuit:
    """The memory of one node's latest calls."""

    unanswered: int = 0

    @property
    def open(self) -> bool:
        """True: pass the node over."""
        return self.unanswered >= FAILURES_TO_OPEN

    def answered(self) -> None:
        """Any answer, even a refusal, shows that the node is there."""
        self.unanswered = 0

    def gave_up(self, waited_s: float) -> None:
        """A call ended without an answer after `waited_s` seconds."""
        if waited_s >= SLOW_S:
            self.unanswered += 1
