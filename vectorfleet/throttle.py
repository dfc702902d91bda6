"""Not asking for what will be refused: adaptive throttling, as pure state.

To refuse a call has its price, too: what is refused is received first. So whoever was refused as OVERLOADED counts, for as
long as that goes on, what it would ask and what of it is taken, and holds the excess back by itself, at random, with the
probability that "Handling Overload" gives (chapter 21 of Site Reliability Engineering, Google, 2016):

    max(0, (asked - headroom × taken) / (asked + 1))

So a little more is asked than is taken, and it shows at once when more can be taken again. A client holds back its own calls
before it sends them; a router's door those of connections that it refuses, before it receives them.

Counting begins with a refusal, and all is forgotten when none came for `MEMORY_S`: who is not refused is never held back, and
costs nothing. A queue that overflows takes nothing for some moments and then all, and who began with these moments alone would
hold back all that the queue could take next; so counting begins with some calls that are said to have been taken, the *credit*.
Much credit that fades slowly also bears refusals that come late, as they do to a client: in a simulation, up to 0.3 s late. A
door hears of a refusal at once, and needs less.

Time and chance are arguments. One thread at a time, or threads that do not mind when a call is not counted.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import InitVar, dataclass, field
from typing import Final, Generic, TypeVar

MEMORY_S: Final = 0.5
HALF_LIFE_S: Final = 5.0
"""Of what was counted."""
HEADROOM: Final = 1.5
CLIENT_CREDIT: Final = 500.0
DOOR_CREDIT: Final = 50.0
KEYS_KEPT: Final = 100
"""So many keys are looked through for those to forget only when another comes."""

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Throttle:
    """Calls of one kind, from their first refusal on."""

    credit: InitVar[float]
    refused_s: float
    """When a call was last not taken."""
    _asked: float = field(init=False)
    _taken: float = field(init=False)
    _counted_s: float = field(init=False)

    def __post_init__(self, credit: float) -> None:
        self._asked = self._taken = credit
        self._counted_s = self.refused_s

    @property
    def share_held_back(self) -> float:
        """The probability with which the next call is held back."""
        return max(0.0, (self._asked - HEADROOM * self._taken) / (self._asked + 1.0))

    def holds_back(self, now_s: float, drawn: float) -> bool:
        """Counts a call, as taken until it is refused, unless it is held back: then True.

        Args:
            now_s: the time.
            drawn: at random, from 0 to below 1.
        """
        kept = 0.5 ** (max(0.0, now_s - self._counted_s) / HALF_LIFE_S)
        self._counted_s = now_s
        self._asked *= kept
        self._taken *= kept
        held = drawn < self.share_held_back
        self._asked += 1.0
        self._taken += not held
        return held

    def refused(self, now_s: float) -> None:
        """Notes that a call which was not held back has not been taken."""
        self.refused_s = now_s
        self._taken = max(0.0, self._taken - 1.0)


class Throttles(Generic[K]):
    """Throttles by what is refused together, such as an RPC on a collection; there is none for what is not refused."""

    def __init__(self, credit: float) -> None:
        """Begins with none.

        Args:
            credit: calls that each is said to have asked and got before its first refusal.
        """
        self._credit = credit
        self.refused_lately: dict[K, Throttle] = {}
        """Empty: there is nothing to ask `holds_back` about."""

    def holds_back(self, key: K, now_s: float, drawn: float) -> bool:
        """Whether to hold back a call, which is counted; see `Throttle.holds_back`."""
        throttle = self.refused_lately.get(key)
        if throttle is None:
            return False
        if now_s - throttle.refused_s >= MEMORY_S:
            self.refused_lately.pop(key, None)
            return False
        return throttle.holds_back(now_s, drawn)

    def refused(self, key: K, now_s: float) -> None:
        """Notes that a call which was not held back has been refused."""
        throttle = self.refused_lately.get(key)
        if throttle is not None and now_s - throttle.refused_s < MEMORY_S:
            throttle.refused(now_s)
            return
        if len(self.refused_lately) >= KEYS_KEPT:
            self.forget(now_s)
        self.refused_lately[key] = Throttle(self._credit, now_s)

    def missed(self, key: K, now_s: float) -> None:
        """Notes that a call got no answer in time: it was not taken either, where others are being refused."""
        throttle = self.refused_lately.get(key)
        if throttle is not None:
            throttle.refused(now_s)

    def forget(self, now_s: float) -> None:
        """Drops what has not been refused lately."""
        for key, throttle in list(self.refused_lately.items()):
            if now_s - throttle.refused_s >= MEMORY_S:
                self.refused_lately.pop(key, None)
