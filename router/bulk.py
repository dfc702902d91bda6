"""Loading over a client stream: several batches under way at once, and still as if they came one after another.

Batches that share no id may be written in any order. One that repeats an id of a batch under way waits for it, so that of
each id the last one sent wins. The first failure ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from router.validation import Points
from router.writes import Written

BATCHES_IN_FLIGHT_MAX: Final = 8


async def write_stream(batches: AsyncIterator[Points], write: Callable[[Points], Awaitable[Written]]) -> Written:
    """Writes all batches of a stream.

    Args:
        batches: checked points; ids do not repeat within one.
        write: writes one batch.

    Raises:
        VectorfleetError: of the first batch that failed; some of the others may have been written.
    """
    under_way: dict[asyncio.Task[Written], frozenset[str]] = {}
    affected = 0
    seqnos: dict[int, int] = {}

    async def some_done() -> None:
        nonlocal affected
        done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            del under_way[task]
            written = task.result()
            affected += written.affected
            for shard, seqno in written.seqnos.items():
                seqnos[shard] = max(seqno, seqnos.get(shard, 0))

    async def write_batch(points: Points) -> Written:
        return await write(points)

    try:
        async for points in batches:
            ids = frozenset(points.ids)
            while len(under_way) >= BATCHES_IN_FLIGHT_MAX or any(not ids.isdisjoint(o) for o in under_way.values()):
                await some_done()
            under_way[asyncio.create_task(write_batch(points))] = ids
        while under_way:
            await some_done()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
    return Written(affected, seqnos)
