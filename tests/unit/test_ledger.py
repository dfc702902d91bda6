"""The ledger of memory: what is refused, what is kept for whom, and that the ceiling holds whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vectorfleet.errors import ResourceExhausted
from vectorfleet.ledger import Ledger

LIMIT = 1000
ASIDE = {"searches": 200, "writes": 50}


def test_growth_is_refused_with_numbers_while_a_share_is_free() -> None:
    ledger = Ledger(LIMIT, ASIDE)
    ledger.hold("buffers", "a", 700)
    with pytest.raises(ResourceExhausted) as caught:
        ledger.reserve("buffers", 51)
    assert caught.value.reason == "MEMORY_FULL"
    assert all(number in caught.value.message for number in ("51 ", "950 ", "1000 "))
    ledger.reserve("searches", 200)
    ledger.reserve("buffers", 50)
    assert ledger.used_bytes == LIMIT
    assert ledger.room_bytes() == 0
    with pytest.raises(ResourceExhausted):
        ledger.reserve("searches", 1)


def test_what_is_there_is_written_down_even_beyond_the_ceiling_and_shares_stay_open() -> None:
    ledger = Ledger(LIMIT, ASIDE)
    ledger.hold("buffers", "a", 5000)
    ledger.reserve("searches", 200)
    ledger.reserve("buffers", 0)
    with pytest.raises(ResourceExhausted):
        ledger.reserve("buffers", 1)
    ledger.hold("buffers", "a", 0)
    assert ledger.used_bytes == 250


def test_a_block_gives_back_what_it_took_also_when_it_fails() -> None:
    ledger = Ledger(LIMIT)
    with contextlib.suppress(ZeroDivisionError), ledger.reserving("merging", 600):
        assert ledger.by_kind == {"merging": 600}
        raise ZeroDivisionError
    assert ledger.used_bytes == 0


class AnyUse(RuleBasedStateMachine):
    """Against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(LIMIT, ASIDE)
        self.reserved: list[tuple[str, int]] = []
        self.held: dict[tuple[str, str], int] = {}

    kinds = st.sampled_from(["searches", "writes", "buffers", "merging"])
    sizes = st.integers(0, 400)

    def sums(self, more: tuple[str, int] = ("", 0)) -> dict[str, int]:
        sums = dict.fromkeys(("searches", "writes", "buffers", "merging", ""), 0)
        for kind, size in (*self.reserved, more):
            sums[kind] += size
        for (kind, _), size in self.held.items():
            sums[kind] += size
        return {kind: max(size, ASIDE.get(kind, 0)) for kind, size in sums.items()}

    @rule(kind=kinds, size=sizes)
    def reserve(self, kind: str, size: int) -> None:
        before, after = sum(self.sums().values()), sum(self.sums((kind, size)).values())
        if after > LIMIT and after > before:
            with pytest.raises(ResourceExhausted):
                self.ledger.reserve(kind, size)
        else:
            self.ledger.reserve(kind, size)
            self.reserved.append((kind, size))

    @rule(choose=st.randoms(use_true_random=False))
    def release(self, choose: Callable[..., object]) -> None:
        if self.reserved:
            self.ledger.release(*self.reserved.pop(choose.randrange(len(self.reserved))))  # type: ignore[attr-defined]

    @rule(kind=kinds, owner=st.sampled_from("ab"), size=sizes)
    def hold(self, kind: str, owner: str, size: int) -> None:
        self.ledger.hold(kind, owner, size)
        self.held[kind, owner] = size

    @invariant()
    def the_sum_is_that_of_the_parts(self) -> None:
        assert self.ledger.used_bytes == sum(self.sums().values()) == sum(self.ledger.by_kind.values())


TestAnyUse = AnyUse.TestCase
