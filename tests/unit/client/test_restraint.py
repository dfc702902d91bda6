"""A client whose calls are refused as OVERLOADED holds some back itself, says so, and stops when they are taken again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from vectorfleet import _restraint, errors
from vectorfleet.throttle import MEMORY_S

CREDIT: Final = 50
CALLS: Final = 3 * CREDIT
Ask = Callable[..., list[Any]]
"""Makes calls one after another, at a clock that stands still and with the chance that is given; returns their outcomes."""


@pytest.fixture(autouse=True)
def _little_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_restraint, "CLIENT_CREDIT", CREDIT)


@pytest.fixture(params=["threads", "tasks"])
def ask(request: pytest.FixtureRequest, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Both clients by turns."""
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("things", dim=2)
        client.create_collection("others", dim=2)

    def run(chances: list[float], *names: str, throttled: bool = True, again_s: float = 0.0) -> list[Any]:
        drawn = iter(chances)
        now_s = 0.0
        monkeypatch.setattr(_restraint, "random", SimpleNamespace(random=lambda: next(drawn)))
        monkeypatch.setattr(_restraint, "time", SimpleNamespace(monotonic=lambda: now_s))

        async def as_tasks() -> list[Any]:
            nonlocal now_s
            outcomes: list[Any] = []
            async with vectorfleet.AsyncClient(fake.address, timeout=20, throttle=throttled) as client:
                for name in names:
                    try:
                        outcomes.append(await client.count(name))
                    except vectorfleet.VectorfleetError as error:
                        outcomes.append(error)
                    now_s += again_s
            return outcomes

        def as_threads() -> list[Any]:
            nonlocal now_s
            outcomes: list[Any] = []
            with vectorfleet.Client(fake.address, timeout=20, throttle=throttled) as client:
                for name in names:
                    try:
                        outcomes.append(client.count(name))
                    except vectorfleet.VectorfleetError as error:
                        outcomes.append(error)
                    now_s += again_s
            return outcomes

        return asyncio.run(as_tasks()) if request.param == "tasks" else as_threads()

    return run


def overloaded(times: int, reason: str = "OVERLOADED") -> list[errors.VectorfleetError]:
    return [errors.ResourceExhausted("full", reason=reason) for _ in range(times)]


def test_who_is_refused_again_and_again_asks_no_more_and_the_error_says_so(fake: FakeCluster, ask: Ask) -> None:
    fake.fail("Count", *overloaded(CALLS))
    outcomes = ask([0.0] * CALLS, *["things"] * CALLS)
    assert {outcome.reason for outcome in outcomes} == {"OVERLOADED"}
    assert 0 < fake.calls["Count"] < CALLS
    assert "has not asked" not in outcomes[0].message
    assert "has not asked" in outcomes[-1].message


def test_beside_refusals_what_is_not_answered_in_time_counts_as_they_do(fake: FakeCluster, ask: Ask) -> None:
    late = [errors.DeadlineExceeded("late") for _ in range(CALLS)]
    fake.fail("Count", *late)
    ask([0.0] * CALLS, *["things"] * CALLS)
    assert fake.calls["Count"] == CALLS, "alone it says nothing of an overload"
    fake.fail("Count", *overloaded(1), *late)
    ask([0.0] * CALLS, *["things"] * CALLS)
    assert fake.calls["Count"] < 2 * CALLS


def test_it_can_be_turned_off(fake: FakeCluster, ask: Ask) -> None:
    fake.fail("Count", *overloaded(CALLS))
    ask([0.0] * CALLS, *["things"] * CALLS, throttled=False)
    assert fake.calls["Count"] == CALLS


def test_other_refusals_hold_nothing_back(fake: FakeCluster, ask: Ask) -> None:
    fake.fail("Count", *overloaded(CALLS, "RATE_LIMITED"))
    ask([0.0] * CALLS, *["things"] * CALLS)
    assert fake.calls["Count"] == CALLS


def test_what_is_taken_again_is_asked_again(fake: FakeCluster, ask: Ask) -> None:
    refused = 3 * CREDIT // 4
    fake.fail("Count", *overloaded(refused))
    outcomes = ask([0.0] * CALLS, *["things"] * CALLS, again_s=MEMORY_S / 50)
    assert fake.calls["Count"] < CALLS, "some were held back"
    assert outcomes[-50:] == [0] * 50, "it does not last"


def test_another_collection_is_not_held_back(fake: FakeCluster, ask: Ask) -> None:
    fake.fail("Count", *overloaded(CALLS))
    outcomes = ask([0.0] * CALLS, *["things"] * (CALLS - 1), "others")
    assert "has not asked" in outcomes[-2].message
    assert "full" in outcomes[-1].message


def test_an_upsert_of_many_calls_is_held_back_as_others_are(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_restraint, "random", SimpleNamespace(random=lambda: 0.0))
    monkeypatch.setattr(_restraint, "time", SimpleNamespace(monotonic=lambda: 0.0))
    with vectorfleet.Client(fake.address) as client:
        client.create_collection("things", dim=2)
        fake.fail("Upsert", *overloaded(CALLS))
        for _ in range(CALLS):
            with pytest.raises(vectorfleet.ResourceExhausted):
                client.upsert("things", ids=["a"], vectors=[[0.0, 1.0]])
        asked = fake.calls["Upsert"]
        assert asked < CALLS
        with pytest.raises(vectorfleet.ResourceExhausted, match="has not asked"):
            client.upsert("things", ids=range(20_001), vectors=[[0.0, 1.0]] * 20_001)
        assert fake.calls["Upsert"] == asked
