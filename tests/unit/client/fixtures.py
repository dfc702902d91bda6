"""Fixtures of the client's and the command line's tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster


class Blocking:
    """An `AsyncClient` behind the face of a `Client`, so that one test drives both."""

    def __init__(self, address: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = vectorfleet.AsyncClient(address, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            outcome = method(*args, **kwargs)
            if inspect.isasyncgen(outcome):
                return self._walk(outcome)
            return self._runner.run(outcome)

        return call

    def _walk(self, points: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(points, None)

        try:
            while (point := self._runner.run(following())) is not None:
                yield point
        finally:
            self._runner.run(points.aclose())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fake: FakeCluster) -> Iterator[Any]:
    """The blocking client and the asyncio client, by turns."""
    one = (vectorfleet.Client if request.param == "sync" else Blocking)(fake.address, timeout=10.0)
    yield one
    one.close()
