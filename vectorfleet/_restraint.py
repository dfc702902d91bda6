"""What a client does not ask, because it would be refused: calls of one RPC on one collection, throttled together."""

from __future__ import annotations

import random
import time
from collections.abc import Sized
from typing import Final

from vectorfleet import errors
from vectorfleet.throttle import CLIENT_CREDIT, Throttles

_NO_ANSWER: Final = errors.DeadlineExceeded, errors.Unavailable


class Restraint:
    """The throttles of one client; threads may share it."""

    def __init__(self, *, enabled: bool) -> None:
        """Holds nothing back yet; where it is not enabled, never."""
        self._enabled = enabled
        self._throttles: Throttles[tuple[object, str]] = Throttles(CLIENT_CREDIT)
        self.refused: Sized = self._throttles.refused_lately
        """While it is empty there is no need to call `before`."""

    def before(self, method: object, request: object) -> None:
        """To be called before an attempt.

        Args:
            method: of a stub.
            request: what it is asked.

        Raises:
            ResourceExhausted: OVERLOADED, without asking.
        """
        if self._throttles.holds_back(
            _key(method, request),
            time.monotonic(),
            random.random(),  # noqa: S311 (no secret)
        ):
            raise errors.ResourceExhausted(
                "the client has not asked: most of its calls like this one are being refused as OVERLOADED"
            )

    def after(self, method: object, request: object, failure: errors.VectorfleetError) -> None:
        """To be called when an attempt has failed."""
        if failure.reason == "OVERLOADED" and self._enabled:
            self._throttles.refused(_key(method, request), time.monotonic())
        elif self.refused and isinstance(failure, _NO_ANSWER):
            self._throttles.missed(_key(method, request), time.monotonic())


def _key(method: object, request: object) -> tuple[object, str]:
    return method, getattr(request, "collection", "")
