"""How router and shard server run their event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    time = staticmethod(time.monotonic)
    """What asyncio's own method calls, without a Python function around it: the loop asks at each turn, for each timer too."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a server to its end, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
