"""Many questions over one long-lived stream, on the side that answers: bounded, all at work at once, answers as they are done.

Knows nothing of what is asked. At most `at_once` questions of a stream are at work or wait to be written; beyond that nothing is
read, and gRPC's flow control holds the other side back.

Invariant: no task outlives the stream.
"""

from __future__ import annotations

import asyncio
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
    room = asyncio.Semaphore(at_once)
    finished: asyncio.Queue[tuple[R | None] | None] = asyncio.Queue()  # bounded by `room`
    tasks: set[asyncio.Task[None]] = set()

    async def run(question: Q) -> None:
        finished.put_nowait((await answer(question),))

    async def read() -> None:
        try:
            while True:
                await room.acquire()
                task = asyncio.create_task(run(await anext(questions)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except StopAsyncIteration:
            pass
        finally:
            await asyncio.gather(*tasks)
            finished.put_nowait(None)

    reader = asyncio.create_task(read())
    stop = asyncio.create_task(stopping.wait())
    stop.add_done_callback(lambda _: reader.cancel())
    try:
        while (done := await finished.get()) is not None:
            (response,) = done
            if response is not None:
                yield response
            room.release()
        if stopping.is_set():
            raise errors.Unavailable("the process is stopping", reason="SHUTTING_DOWN")
        await reader  # raises where reading failed
    finally:
        for task in (stop, reader, *tasks):
            task.cancel()
        await asyncio.gather(stop, reader, *tasks, return_exceptions=True)
