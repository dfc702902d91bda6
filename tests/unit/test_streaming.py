"""A stream of questions whose process stops: what came is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vectorfleet.errors import Unavailable
from vectorfleet.streaming import answer_all


@pytest.mark.parametrize("half_closed", [True, False])
async def test_what_is_at_work_is_answered_when_the_process_stops(half_closed: bool) -> None:
    asked, may_answer, stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def questions() -> AsyncIterator[int]:
        yield 1
        if not half_closed:
            await asyncio.Event().wait()

    async def answer(question: int) -> int:
        asked.set()
        await may_answer.wait()
        return question + 1

    async def heard() -> tuple[list[int], str]:
        got: list[int] = []
        try:
            async for one in answer_all(questions(), answer, at_once=4, stopping=stopping):
                got.append(one)  # noqa: PERF401 (what came before the error counts)
        except Unavailable as error:
            return got, error.reason
        return got, ""

    reading = asyncio.create_task(heard())
    async with asyncio.timeout(20):
        await asked.wait()
        for _ in range(3):  # the reader has met the end of the questions, or waits for the next
            await asyncio.sleep(0)
        stopping.set()
        for _ in range(3):
            await asyncio.sleep(0)
        may_answer.set()
        assert await reading == ([2], "SHUTTING_DOWN")
