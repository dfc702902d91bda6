"""A search that would be answered too late is refused when it comes; those before it are answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from router import searches as searches_module
from router.deadline import Deadline
from router.fanout import Answers, Fanout, Question
from router.merge import ShardAnswer
from router.searches import Searches
from router.validation import SearchOptions
from vectorfleet import errors
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.punctuality import BURST_S, CALM_S
from vectorfleet.telemetry.work import Work

SHARD = ShardAssignment(0, 0, 2**64 - 1, 1, "n", ("n",), ("n",))
RECORD = CollectionRecord("c", "u", 2, 1, (SHARD,))
QUERY = np.zeros((1, 2), np.float32)
OPTIONS = SearchOptions(k=1)


class SlowFanout:
    """Answers one batch each time that it is told to."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(0)

    def ask(self, question: Question, answers: Answers, deadline: Deadline, work: Work) -> None:
        task = asyncio.create_task(self._answer(question, answers))
        answers.owed[task] = task.cancel
        task.add_done_callback(answers.settle)

    async def _answer(self, question: Question, answers: Answers) -> None:
        await self.turns.acquire()
        none = np.zeros(len(question.vectors), np.uint32)
        answers.answered[0] = ShardAnswer(0, none, np.empty(0, np.float32), [], [], b"", 0)


async def test_it_is_refused_with_numbers_and_a_patient_one_is_not() -> None:
    fanout = SlowFanout()
    searches = Searches(cast(Fanout, fanout), in_flight_max=1)

    def search(seconds: float) -> asyncio.Task[object]:
        return asyncio.create_task(searches.search(RECORD, QUERY, OPTIONS, {}, Deadline.after(seconds)))

    ahead = [search(600.0) for _ in range(50)]
    await asyncio.sleep(BURST_S)  # one batch of one is under way, and takes this long
    fanout.turns.release()
    await ahead[0]
    late = search(BURST_S)
    while not late.done():  # a burst is let in; then it ends
        await asyncio.sleep(0)
        late = search(BURST_S)
        await asyncio.wait([late], timeout=BURST_S / 10)
    with pytest.raises(errors.ResourceExhausted) as caught:
        await late
    assert caught.value.reason == "OVERLOADED"
    assert "queries are ahead" in caught.value.message
    patient = search(600.0)
    while not patient.done():
        fanout.turns.release()
        await asyncio.sleep(0)
    await asyncio.gather(patient, *ahead)
    await searches.close()


async def test_a_batch_that_no_shard_answers_says_nothing_of_the_pace() -> None:
    searches = Searches(cast(Fanout, SlowFanout()), in_flight_max=1)
    for _ in range(3):
        share = await searches.search(RECORD, QUERY, OPTIONS, {}, Deadline.after(0.05))
        assert share.coverage.shards_answered == 0
    assert not searches._punctuality, "and a lane without work takes no memory"
    await searches.close()


async def test_a_lane_that_had_too_much_is_remembered_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(searches_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    fanout = SlowFanout()
    searches = Searches(cast(Fanout, fanout), in_flight_max=1)

    def search(seconds: float) -> asyncio.Task[object]:
        return asyncio.create_task(searches.search(RECORD, QUERY, OPTIONS, {}, Deadline.after(seconds)))

    first, second = search(600.0), search(600.0)
    await asyncio.sleep(0)
    now_s = 100.0  # what a batch takes
    fanout.turns.release()
    await first
    third = search(60.0)  # it would be late, and no one was before: a burst
    await asyncio.sleep(0)
    for _ in range(2):
        fanout.turns.release()
    await asyncio.gather(second, third)
    assert searches._punctuality, "what comes next is no new burst"
    searches._forget()
    assert searches._punctuality
    now_s += CALM_S
    searches._forget()
    assert not searches._punctuality
    await searches.close()
