"""Whom a door turns away unread: connections whose calls are being refused, throttled together, as pure state.

One connection alone may ask too seldom to be judged, and many of them are a flood all the same. So whoever was refused within
`MEMBER_S` belongs to a *crowd*, one for each method, and of all that a crowd asks a little more is let in than is taken
(`vectorfleet.throttle`). A connection of which nothing is refused within belongs to none and never suffers, whatever
others do. Callers who share a connection share its lot: one of them who has time to wait is turned away with the others.

Time and chance are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vectorfleet.throttle import DOOR_CREDIT, Throttles

MEMBER_S: Final = 2.0


@dataclass(slots=True)
class Crowds:
    """Of one door."""

    _throttles: Throttles[str] = field(default_factory=lambda: Throttles(DOOR_CREDIT))
    """By method."""
    members: dict[tuple[str, str], float] = field(default_factory=dict)
    """By connection and method, when a call was last refused within; the oldest first. Empty: nobody is to be asked about."""

    def turns_away(self, peer: str, method: str, now_s: float, drawn: float) -> bool:
        """Whether to turn a call away, which is counted if a member of a crowd makes it.

        Args:
            peer: the connection.
            method: what is called.
            now_s: the time.
            drawn: at random, from 0 to below 1.
        """
        refused_s = self.members.get((peer, method))
        if refused_s is None or now_s - refused_s >= MEMBER_S:
            return False
        return self._throttles.holds_back(method, now_s, drawn)

    def refused(self, peer: str, method: str, now_s: float) -> None:
        """Notes that a call which was not turned away has been refused."""
        refused_s = self.members.pop((peer, method), None)
        self.members[peer, method] = now_s
        counted = refused_s is not None and now_s - refused_s < MEMBER_S
        # What a newcomer was refused was not counted as asked, either.
        if counted or method not in self._throttles.refused_lately:
            self._throttles.refused(method, now_s)

    def forget(self, now_s: float) -> None:
        """Drops who has not been refused lately; to be called now and then."""
        self._throttles.forget(now_s)
        if not self._throttles.refused_lately:
            self.members.clear()
        for member, refused_s in list(self.members.items()):
            if now_s - refused_s < MEMBER_S:
                break
            del self.members[member]
