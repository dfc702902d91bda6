"""Lanes on an event loop: callers that ask again and again travel in as many batches as there are places, of equal size."""

from __future__ import annotations

import asyncio

from vectorfleet.lanes import Lanes

CALLERS = 64


async def test_callers_that_ask_again_and_again_share_two_batches_evenly() -> None:
    sizes: list[int] = []
    under_way: list[tuple[asyncio.Future[None], list[asyncio.Future[None]]]] = []

    def begin(key: str, shares: list[asyncio.Future[None]]) -> asyncio.Future[None]:
        sizes.append(len(shares))

        async def carry() -> None:
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            under_way.append((answered, shares))
            await answered
            asyncio.get_running_loop().call_soon(lambda: [share.set_result(None) for share in shares])

        return asyncio.create_task(carry())

    lanes: Lanes[str, asyncio.Future[None]] = Lanes(begin, in_flight_max=2, weight_max=1000, gathering=True)

    async def ask() -> None:
        while True:
            share: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            lanes.put("lane", share)
            await share

    callers = [asyncio.create_task(ask()) for _ in range(CALLERS - 1)]
    for turn in range(12):
        if turn == 3:  # one who comes late would go on alone
            callers.append(asyncio.create_task(ask()))
        for _ in range(6):
            await asyncio.sleep(0)
        under_way.pop(0)[0].set_result(None)
    for caller in callers:
        caller.cancel()
    await lanes.close()
    assert sizes[-4:] == [CALLERS // 2] * 4, sizes
