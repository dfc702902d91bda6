"""The retry policy, with a clock that the test turns."""

from __future__ import annotations

import pytest

from vectorfleet import errors
from vectorfleet._attempts import ATTEMPTS_MAX, PAUSE_MAX_S, POLL_MAX_S, Attempts, poll_pause_s

AWAY = errors.Unavailable("a shard is away")
NOT_SENT = errors.Unavailable("h:1 cannot be reached: failed to connect to all addresses", reason="UNREACHABLE")
CUT_OFF = errors.Unavailable("h:1 cannot be reached: Socket closed", reason="UNREACHABLE")
NO_NODES = errors.Unavailable("no nodes", reason="NO_NODES")


def test_pauses_grow_and_end() -> None:
    attempts = Attempts(1_000.0, 0.0)
    pauses = [attempts.pause_s(AWAY, 1.0, jitter=1.0) for _ in range(ATTEMPTS_MAX)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, None]


def test_jitter_takes_up_to_half_of_a_pause() -> None:
    assert Attempts(9.0, 0.0).pause_s(AWAY, 0.0, jitter=0.0) == pytest.approx(0.05)
    drawn = {Attempts(9.0, 0.0).pause_s(AWAY, 0.0) for _ in range(20)}
    assert len(drawn) > 1
    assert all(pause is not None and 0.05 <= pause <= 0.1 <= PAUSE_MAX_S for pause in drawn)


def test_no_pause_passes_the_deadline() -> None:
    attempts = Attempts(5.0, 100.0)
    assert attempts.remaining_s(103.0) == 2.0
    assert attempts.pause_s(AWAY, 104.95, jitter=1.0) is None
    assert attempts.remaining_s(106.0) == 0.0


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("no"),
        errors.ResourceExhausted("full"),
        errors.DeadlineExceeded("late"),
        errors.InternalError("broken"),
        errors.NotFound("nowhere"),
    ],
)
def test_only_what_is_unavailable_is_tried_again(error: errors.VectorfleetError) -> None:
    assert Attempts(5.0, 0.0).pause_s(error, 0.0) is None


@pytest.mark.parametrize(("error", "again"), [(AWAY, False), (CUT_OFF, False), (NOT_SENT, True), (NO_NODES, True)])
def test_what_must_not_happen_twice_is_tried_again_only_when_nothing_was_done(
    error: errors.VectorfleetError, again: bool
) -> None:
    assert (Attempts(5.0, 0.0, repeatable=False).pause_s(error, 0.0) is not None) is again
    assert Attempts(5.0, 0.0).pause_s(error, 0.0) is not None


def test_polls_slow_down_to_half_a_second() -> None:
    pauses = [poll_pause_s(polls, 100.0) for polls in range(50)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == POLL_MAX_S
    assert poll_pause_s(50, 0.2) == 0.2
    assert poll_pause_s(0, -1.0) == 0.0
