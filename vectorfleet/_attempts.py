"""How often and how long one call is tried: the client's retry policy as a small state machine, without a clock of its own.

Only what is `retryable` (UNAVAILABLE) is tried again, with jittered exponential backoff, a bounded number of times and always
within the caller's deadline. A call that must not happen twice (creating or deleting a collection) is tried again only where
the failure itself proves that nothing was done.
"""

from __future__ import annotations

import random
from typing import Final

import grpc

from vectorfleet import errors

ATTEMPTS_MAX: Final = 5
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0
POLL_FIRST_S: Final = 0.05
POLL_MAX_S: Final = 0.5
NOT_REACHED: Final = " cannot be reached: "
_NOT_SENT: Final = "failed to connect"
"""How gRPC's core words that no connection came about; should it change its words, we only retry less."""


class Attempts:
    """The attempts of one call. Ask `remaining_s` before each, and after a failure `pause_s`."""

    def __init__(self, timeout_s: float, now_s: float, *, repeatable: bool = True) -> None:
        self._deadline_s = now_s + timeout_s
        self._repeatable = repeatable
        self._failures = 0

    def remaining_s(self, now_s: float) -> float:
        """Seconds until the deadline; never negative."""
        return max(0.0, self._deadline_s - now_s)

    def pause_s(self, error: errors.VectorfleetError, now_s: float, jitter: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None: give up and raise the error.

        Args:
            error: how the attempt failed.
            now_s: the time, on the clock of `now_s` at the start.
            jitter: 0 to 1; drawn at random where it is not given.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS_MAX or not error.retryable or not (self._repeatable or _nothing_was_done(error)):
            return None
        share = random.random() if jitter is None else jitter  # noqa: S311 (no secret)
        pause = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** (self._failures - 1)) * (0.5 + share / 2)
        return pause if pause < self.remaining_s(now_s) else None


def poll_pause_s(polls: int, remaining_s: float) -> float:
    """Seconds to wait after so many polls that found nothing new."""
    return max(0.0, min(POLL_MAX_S, POLL_FIRST_S * 2.0 ** min(polls, 10), remaining_s))


def client_closed() -> errors.VectorfleetError:
    """Makes the error for a call on a client that was closed before it or during it."""
    return errors.FailedPrecondition("the client was closed before the call was answered", reason="CLIENT_CLOSED")


def failure_of(error: BaseException, address: str, *, closed: bool) -> errors.VectorfleetError:
    """Reads what a channel raised; where the server could not be reached, the message says which.

    Args:
        error: a `grpc.RpcError`, or whatever else comes of calls on a closed channel.
        address: of the server.
        closed: whether the channel was closed meanwhile: gRPC's own words for that tell callers nothing.
    """
    if not isinstance(error, grpc.RpcError):
        return client_closed()
    failure = errors.from_rpc_error(error)
    if closed and failure.reason == "CANCELLED":
        return client_closed()
    if failure.reason == "UNREACHABLE":
        return errors.Unavailable(f"{address}{NOT_REACHED}{failure.message}", reason="UNREACHABLE")
    return failure


def _nothing_was_done(error: errors.VectorfleetError) -> bool:
    return error.reason == "NO_NODES" or (error.reason == "UNREACHABLE" and _NOT_SENT in error.message)
