"""How much one caller may ask of this router: token buckets, which run into debt. Pure; the time is an argument.

A bucket holds what may be asked at once, one second's worth, or one day's for the quota, and fills at its rate. A call is
admitted while there is one whole unit in it, and takes its whole cost out, if need be below zero: so a call of 10,000 points
passes at 1,000 points a second as well, and the next one waits ten seconds. Buckets are this process's own: with n routers a
caller gets up to n times as much, and a restart fills them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from router.access.principal import Principal
from vectorfleet.cluster.key_record import NO_LIMITS, Limits
from vectorfleet.errors import ResourceExhausted

CALLERS_MAX: Final = 10_000
"""Callers whose buckets are kept; who has not called for longest is forgotten, and starts anew."""
DAY_S: Final = 86_400.0
_ROUNDING: Final = 1e-6


@dataclass(slots=True)
class Bucket:
    """What one caller may still ask of one kind."""

    rate_per_s: float
    capacity: float
    level: float
    at_s: float

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next call is admitted; 0: it is."""
        self.level = min(self.capacity, self.level + (now_s - self.at_s) * self.rate_per_s)
        self.at_s = now_s
        missing = 1.0 - self.level
        return missing / self.rate_per_s if missing > _ROUNDING else 0.0

    def take(self, cost: float) -> None:
        """Takes the cost of a call that was admitted."""
        self.level -= cost


class Rates:
    """The buckets of all callers."""

    def __init__(self, default: Limits) -> None:
        """Full buckets for everybody.

        Args:
            default: holds for callers without limits of their own; 0: no limit.
        """
        self._default = default
        self._unlimited = default == NO_LIMITS
        self._buckets: OrderedDict[str, tuple[Limits, list[tuple[str, Bucket]]]] = OrderedDict()

    def admit(self, principal: Principal, points: int, now_s: float) -> None:
        """Admits a call of so many points, or raises.

        Args:
            principal: who calls.
            points: that the call brings, or asks for; 0: none.
            now_s: seconds on a monotonic clock.

        Raises:
            ResourceExhausted: RATE_LIMITED or QUOTA_EXCEEDED; `retry_after_s` says for how long. Nothing was taken.
        """
        if self._unlimited and (principal.limits is NO_LIMITS or principal.limits == NO_LIMITS):
            return
        buckets = self._of(principal, now_s)
        for kind, bucket in buckets:
            wait_s = bucket.wait_s(now_s) if points or kind == _CALLS else 0.0
            if wait_s > 0:
                reason = "QUOTA_EXCEEDED" if kind == _QUOTA else "RATE_LIMITED"
                message = (
                    f"{principal.name} has used up its {kind} on this router; the next call is taken in {wait_s:.3g} s"
                )
                raise ResourceExhausted(message, reason=reason, retry_after_s=wait_s)
        for kind, bucket in buckets:
            bucket.take(1 if kind == _CALLS else points)

    def _of(self, principal: Principal, now_s: float) -> list[tuple[str, Bucket]]:
        kept = self._buckets.get(principal.name)
        if kept is not None and kept[0] == principal.limits:
            self._buckets.move_to_end(principal.name)
            return kept[1]
        own, default = principal.limits, self._default
        buckets = [
            (kind, Bucket(rate, max(rate * period_s, 1.0), max(rate * period_s, 1.0), now_s))
            for kind, rate, period_s in (
                (_CALLS, own.calls_per_s or default.calls_per_s, 1.0),
                (_POINTS, own.points_per_s or default.points_per_s, 1.0),
                (_QUOTA, (own.points_per_day or default.points_per_day) / DAY_S, DAY_S),
            )
            if rate
        ]
        self._buckets[principal.name] = own, buckets
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
        return buckets


_CALLS: Final = "calls a second"
_POINTS: Final = "points a second"
_QUOTA: Final = "points a day"
