"""Callers of the benchmark: every query is asked, a failure ends them all, and the watch sees them connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from loadtest.callers import AskBlocking, Floats, Load, Rows, Watch, tasks, threads

QUERIES = np.arange(12, dtype=np.float32).reshape(6, 2)


def answer(queries: Floats) -> Rows:
    return queries[:, :1].astype(np.int64)


class Noting(Watch):
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.connected = 0

    def begin(self) -> None:
        self.seen.append(self.connected)

    def end(self) -> None:
        self.seen.append(self.connected)


@pytest.mark.parametrize("size", [1, 3])
def test_tasks_ask_all_queries(size: int) -> None:
    async def ask(queries: Floats) -> Rows:
        await asyncio.sleep(0)
        return answer(queries)

    asked = asyncio.run(tasks(ask, QUERIES, Load(3, size, 0.05, 0.0)))
    assert {query: row.tolist() for query, row in asked.rows.items()} == {row: [2 * row] for row in range(6)}
    assert asked.latencies.queries_s > 0


@pytest.mark.parametrize("size", [1, 3])
def test_threads_ask_all_queries_and_are_watched_while_connected(size: int) -> None:
    watch = Noting()

    @contextlib.contextmanager
    def connect() -> Iterator[AskBlocking]:
        watch.connected += 1
        yield answer
        watch.connected -= 1

    asked = threads(connect, QUERIES, Load(3, size, 0.05, 0.0), watch)
    assert {query: row.tolist() for query, row in asked.rows.items()} == {row: [2 * row] for row in range(6)}
    assert watch.seen == [3, 3]
    assert watch.connected == 0


@pytest.mark.parametrize("when", ["connecting", "asking"])
def test_a_thread_that_fails_ends_all_with_its_own_reason(when: str) -> None:
    turns = iter(range(100))

    @contextlib.contextmanager
    def connect() -> Iterator[AskBlocking]:
        broken = next(turns) == 1
        if broken and when == "connecting":
            raise ConnectionError("refused")

        def ask(queries: Floats) -> Rows:
            if broken:
                raise ConnectionError("refused")
            return answer(queries)

        yield ask

    with pytest.raises(ConnectionError, match="refused"):
        threads(connect, QUERIES, Load(3, 1, 0.05, 0.0), Watch())


def test_no_answer_in_time_is_said() -> None:
    with pytest.raises(TimeoutError, match="0 s"):
        asyncio.run(tasks(lambda queries: asyncio.sleep(0, answer(queries)), QUERIES, Load(1, 1, 0.0, 0.0)))
