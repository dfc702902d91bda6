"""How tests of real processes wait: for a condition, with a deadline, and never for a fixed time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PAUSE_S = 0.02


def until(condition: Callable[[], T], *, within_s: float = 30.0, what: str = "") -> T:
    """Asks until the answer is true, and returns it.

    Raises:
        AssertionError: the time is up; says `what` was waited for and the last answer or exception.
    """
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    last: object = None
    while time.monotonic() < deadline_s:
        try:
            answer = condition()
            if answer:
                return answer
            last = answer
        except Exception as error:  # the condition decides; what it raised last is shown
            last = error
        pause.wait(_PAUSE_S)
    raise AssertionError(
        f"{what or getattr(condition, '__name__', 'the condition')} was not met within {within_s:g} s; last: {last!r}"
    )
