"""Whether a node that stopped answering is still worth a caller's time: a pure state machine.

A process that hangs, or a machine that vanished, answers nothing: each call to it costs the whole of its deadline. But a
call that takes long proves little by itself: the node may be working on it, or the caller gave it 5 ms. So silence
only raises a suspicion, and somebody outside (nodes.py) asks a suspected node for next to nothing. Probes that get no answer
open the circuit: calls pass the node over at once, and those under way are given up. An answer, of whatever kind, closes it.

Time is an argument: seconds of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SUSPECT_AFTER_S: Final = 0.5
"""A node that was asked and has said nothing for so long is probed."""
PROBES_TO_OPEN: Final = 3
"""Probes lost in a row."""


@dataclass(slots=True)
class Circuit:
    """The memory of one node's silence."""

    silent_since_s: float | None = None
    """When the node was asked first since its last answer; None: it owes none."""
    probes_lost: int = 0

    @property
    def open(self) -> bool:
        """True: pass the node over."""
        return self.probes_lost >= PROBES_TO_OPEN

    def suspect(self, now_s: float) -> bool:
        """Whether to probe the node."""
        return self.silent_for(SUSPECT_AFTER_S, now_s)

    def silent_for(self, seconds: float, now_s: float) -> bool:
        """Whether the node was asked, and has said nothing to anybody for so long."""
        return self.silent_since_s is not None and now_s - self.silent_since_s >= seconds

    def asked(self, now_s: float) -> None:
        """A call left."""
        if self.silent_since_s is None:
            self.silent_since_s = now_s

    def answered(self) -> None:
        """Any answer, even a refusal, shows that the node is there."""
        self.silent_since_s = None
        self.probes_lost = 0

    def probe_lost(self) -> None:
        """A probe got no answer."""
        self.probes_lost += 1
