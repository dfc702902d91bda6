"""Many questions over one long-lived stream, on the side that answers: bounded, all at work at once, answers as they are done.

Knows nothing of what is asked. At most `at_once` questions of a stream are at work or wait to be written; beyond that nothing is
read, and gRPC's flow control holds the other side back.

Invariant: no task outlives the stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from vectorfleet import errors

Q = TypeVar("Q")
R = TypeVar("R")


async def answer_all(
    questions: AsyncIterator[Q],
    answer: Callable[[Q], Awaitable[R | None]],
    *,
    at_once: int,
    stopping: asyncio.Event,
) -> AsyncIterator[R]:
    """Yields the answers to a stream of questions, in the order in which they are done.

    Args:
        questions: what the other side sends.
        answer: answers one; it raises nothing. None: there is nothing to say.
        at_once: so many at once.
        stopping: set when the process stops: nothing more is read, and what is at work is answered.

    Raises:
        Unavailable: SHUTTING_DOWN, after the last answer.
    """
    finished: deque[R | None] = deque()
    news, freed = asyncio.Event(), asyncio.Event()
    unsaid = 0  # questions at work, and answers that wait to be written
    reading, over = True, False
    tasks: set[asyncio.Task[None]] = set()

    async def run(question: Q) -> None:
        try:
            finished.append(await answer(question))
            news.set()
        finally:
            task = asyncio.current_task()
            assert task is not None
            tasks.discard(task)

    async def read() -> None:
        nonlocal unsaid, reading, over
        try:
            while True:
                while unsaid >= at_once:
                    freed.clear()
                    await freed.wait()
                question = await anext(questions)
                unsaid += 1
                tasks.add(asyncio.create_task(run(question)))
        except StopAsyncIteration:
            pass
        finally:
            reading = False
            try:
                await asyncio.gather(*tasks)
            finally:
                over = True
                news.set()

    reader = asyncio.create_task(read())
    stop = asyncio.create_task(stopping.wait())
    # Who reads no more waits for what is at work, and that is to be answered.
    stop.add_done_callback(lambda _: reading and reader.cancel())
    try:
        while finished or not over:
            if not finished:
                news.clear()
                await news.wait()
                continue
            response = finished.popleft()
            if response is not None:
                yield response
            unsaid -= 1
            freed.set()
        if stopping.is_set():
            raise errors.Unavailable("the process is stopping", reason="SHUTTING_DOWN")
        await reader  # raises where reading failed
    finally:
        for task in (stop, reader, *tasks):
            task.cancel()
        await asyncio.gather(stop, reader, *tasks, return_exceptions=True)
