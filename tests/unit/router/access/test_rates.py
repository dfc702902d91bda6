"""Token buckets, with the time as an argument."""

from __future__ import annotations

import pytest

from router.access import rates
from router.access.principal import Principal
from router.access.rates import Rates
from router.access.scopes import Scopes
from vectorfleet.cluster.key_record import Limits
from vectorfleet.errors import ResourceExhausted


def caller(name: str = "key:a", **limits: float) -> Principal:
    return Principal(name, Scopes.of([]), Limits(**limits))


def refused(under: Rates, who: Principal, points: int, now_s: float) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as caught:
        under.admit(who, points, now_s)
    return caught.value


def test_nobody_is_held_where_there_are_no_limits() -> None:
    under = Rates(Limits())
    for _ in range(1000):
        under.admit(caller(), 10_000, 0.0)


def test_calls_a_second() -> None:
    under, who = Rates(Limits()), caller(calls_per_s=5)
    for _ in range(5):
        under.admit(who, 0, 100.0)
    why = refused(under, who, 0, 100.0)
    assert why.reason == "RATE_LIMITED"
    assert why.retry_after_s == pytest.approx(0.2)
    refused(under, who, 0, 100.1)
    under.admit(who, 0, 100.0 + why.retry_after_s)  # what was said holds
    refused(under, who, 0, 100.0 + why.retry_after_s)
    for _ in range(5):  # and after a long pause there is no more than one second's worth
        under.admit(who, 0, 900.0)
    refused(under, who, 0, 900.0)


def test_less_than_one_call_a_second() -> None:
    under, who = Rates(Limits()), caller(calls_per_s=0.1)
    under.admit(who, 0, 0.0)
    assert refused(under, who, 0, 1.0).retry_after_s == pytest.approx(9.0)
    under.admit(who, 0, 10.0)


def test_a_call_larger_than_the_bucket_passes_and_is_paid_for_afterwards() -> None:
    under, who = Rates(Limits()), caller(points_per_s=1000)
    under.admit(who, 10_000, 0.0)
    assert refused(under, who, 1, 0.0).retry_after_s == pytest.approx(9.001)
    under.admit(who, 0, 0.0)  # a call without points has nothing to wait for
    under.admit(who, 1, 9.002)


def test_points_a_day() -> None:
    under, who = Rates(Limits()), caller(points_per_day=86_400)
    under.admit(who, 86_000, 0.0)
    under.admit(who, 400, 0.0)
    why = refused(under, who, 1, 0.0)
    assert why.reason == "QUOTA_EXCEEDED"
    assert why.retry_after_s == pytest.approx(1.0)
    under.admit(who, 1, 1.0)


def test_what_is_refused_costs_nothing() -> None:
    under, who = Rates(Limits()), caller(calls_per_s=2, points_per_s=10)
    under.admit(who, 20, 0.0)
    for _ in range(5):
        assert refused(under, who, 5, 0.0).retry_after_s == pytest.approx(1.1)
    under.admit(who, 0, 0.0)


def test_the_routers_limits_hold_for_those_without_their_own() -> None:
    under = Rates(Limits(calls_per_s=1))
    under.admit(caller("a"), 0, 0.0)
    refused(under, caller("a"), 0, 0.0)
    under.admit(caller("b"), 0, 0.0)  # each has its own bucket
    for _ in range(100):
        under.admit(caller("c", calls_per_s=100), 0, 0.0)


def test_changed_limits_count_at_once() -> None:
    under = Rates(Limits())
    under.admit(caller(calls_per_s=1), 0, 0.0)
    refused(under, caller(calls_per_s=1), 0, 0.0)
    under.admit(caller(calls_per_s=2), 0, 0.0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "CALLERS_MAX", 10)
    under = Rates(Limits(calls_per_s=1))
    for number in range(100):
        under.admit(caller(f"jwt:{number}"), 0, 0.0)
    refused(under, caller("jwt:99"), 0, 0.0)
    assert len(under._buckets) == 10
