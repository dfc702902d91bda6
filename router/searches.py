"""Searches from admission to merged hits: the asyncio shell around batching, fan-out and merge.

A caller hands in its queries and awaits its share of a batch. The batch is asked of the shards once. Each of its callers keeps
its own deadline: one that cannot wait longer gets what came back so far, while the others of the batch wait on.
A caller that went away is dropped before its batch leaves; one that would be answered too late is refused when it comes
(`punctuality`).

The way of a usual batch is made of callbacks: it leaves in the step in which its caller comes, and is merged in the step in which
its last node answers. One clock watches the deadlines of all callers.

Invariant: every search that was admitted is answered, refused or cancelled; `close` leaves no task behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from router.alarm import Alarm
from router.deadline import Deadline
from router.fanout import Answers, Fanout, Question
from router.merge import ShardAnswer, Winners, merge
from router.validation import Matrix, SearchOptions
from vectorfleet import errors, limits
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.lanes import Lanes
from vectorfleet.punctuality import CALM_S, Punctuality
from vectorfleet.telemetry.work import Work, current, reason_of, shared
from vectorfleet.v1 import types_pb2

QUEUED_QUERIES_MAX: Final = 16 * limits.QUERIES_MAX
MERGE_ON_LOOP_MAX: Final = 20_000
"""Hits that are merged on the event loop; more go to a thread, so that others are not held up."""
RING_TOGETHER_S: Final = 0.005
"""Callers whose time is up within so long are settled together: each time costs a look at all, and a merge of a batch."""
SHARE_MAX: Final = 1 / 3
"""Of the time that a caller has, which the searches ahead of it and its own may take."""
_TOO_LARGE: Final = frozenset({"RESPONSE_TOO_LARGE", "MESSAGE_TOO_LARGE"})

LaneKey: TypeAlias = tuple[str, SearchOptions, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Share:
    """One caller's part of a merged batch."""

    answers: Sequence[ShardAnswer]
    winners: Winners
    first_query: int
    queries: int
    coverage: types_pb2.Coverage


@dataclass(slots=True, eq=False)
class _Caller:
    record: CollectionRecord
    vectors: Matrix
    answer_by_s: float
    punctuality: Punctuality
    work: Work
    share: asyncio.Future[Share]
    batch: _Batch | None = None
    """What it waits for; None: it waits to travel, also for its turn to travel alone, or is being settled."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Callers whose queries are asked together."""

    callers: list[_Caller]
    """Queries are in their order."""
    question: Question
    answers: Answers
    work: Work
    ended: asyncio.Future[None]
    started_s: float
    waiting: int
    """Callers that have not got their share, nor gone."""

    def left(self, callers: int, error: str = "") -> None:
        """So many of its callers wait no longer; the batch ends with the last one."""
        self.waiting -= callers
        if not self.waiting:
            self.answers.give_up()
            self.work.end(error)
            if not self.ended.done():  # by `Lanes.close`
                self.ended.set_result(None)


def _lane(record: CollectionRecord, options: SearchOptions, min_seqno: Mapping[int, int]) -> LaneKey:
    return record.uid, options, tuple(sorted(min_seqno.items())) if min_seqno else ()


class Searches:
    """Admits searches, batches them, and gives each caller its share."""

    def __init__(self, fanout: Fanout, *, in_flight_max: int = 2) -> None:
        self._fanout = fanout
        self._lanes: Lanes[LaneKey, _Caller] = Lanes(
            self._leave, in_flight_max=in_flight_max, weight_max=limits.QUERIES_MAX
        )
        self._queued = 0
        self._punctuality: dict[LaneKey, Punctuality] = {}
        """Of lanes that have work, or lately had too much."""
        self._forgetting: asyncio.TimerHandle | None = None
        self._callers: set[_Caller] = set()
        self._alarm = Alarm(self._ring)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """Queries that wait to travel with others."""
        return self._queued

    async def search(
        self,
        record: CollectionRecord,
        vectors: Matrix,
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        deadline: Deadline,
    ) -> Share:
        """Answers validated queries, in time for the answer to reach the caller.

        Args:
            record: the collection.
            vectors: float32[queries, dim].
            options: what to look for, and how hard.
            min_seqno: shard → the write that its answer must include.
            deadline: the caller's.

        Raises:
            ResourceExhausted: OVERLOADED, the queue is full, or so long that the answer would come too late;
                RESPONSE_TOO_LARGE, the hits do not fit a message.
            NotFound: the collection was deleted meanwhile.
            DeadlineExceeded: it had to wait for others for too long.
        """
        queries = len(vectors)
        if self._queued + queries > QUEUED_QUERIES_MAX:
            raise errors.ResourceExhausted(f"{self._queued} queries wait already")
        key = _lane(record, options, min_seqno)
        punctuality = self._admitted(key, queries, deadline, entering=True)
        if punctuality is None:
            punctuality = self._punctuality[key] = Punctuality(SHARE_MAX)
        share: asyncio.Future[Share] = asyncio.get_running_loop().create_future()
        caller = _Caller(record, vectors, deadline.answer_by_s(), punctuality, current(), share)
        self._queued += queries
        self._callers.add(caller)
        punctuality.enter(queries)
        try:
            self._alarm.by(caller.answer_by_s)
            self._lanes.put(key, caller, queries)
            return await share
        finally:
            self._callers.discard(caller)
            punctuality.leave(queries)
            if not punctuality.ahead:
                self._idle(key, punctuality)
            if caller.batch is not None and share.cancelled():
                caller.batch.left(1, "CANCELLED")

    def refuse_late(
        self,
        record: CollectionRecord,
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        queries: int,
        deadline: Deadline,
    ) -> None:
        """Refuses, before any work is done for it, a search that `search` would refuse as too late."""
        self._admitted(_lane(record, options, min_seqno), queries, deadline, entering=False)

    def _admitted(self, key: LaneKey, queries: int, deadline: Deadline, *, entering: bool) -> Punctuality | None:
        """What is ahead of a search; None: nothing is, nor was lately, so that it cannot be late."""
        punctuality = self._punctuality.get(key)
        if punctuality is None:
            return None
        left_s = deadline.remaining_s()
        if not punctuality.admits(queries, left_s, time.monotonic(), entering=entering):
            raise errors.ResourceExhausted(
                f"{punctuality.ahead} queries are ahead, and {queries} more would come back in about "
                f"{punctuality.expected_s(queries):.2g} s; the call has {left_s:.2g} s left"
            )
        return punctuality

    def _idle(self, key: LaneKey, punctuality: Punctuality) -> None:
        """Forgets a lane that has no work, at once unless it had too much."""
        if not punctuality.strained(time.monotonic()):
            self._punctuality.pop(key, None)
        elif self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(CALM_S, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        for key, punctuality in list(self._punctuality.items()):
            if not punctuality.ahead:
                self._idle(key, punctuality)

    async def close(self) -> None:
        """Cancels all searches."""
        for caller in await self._lanes.close():
            caller.share.cancel()
        self._alarm.stop()
        if self._forgetting is not None:
            self._forgetting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _leave(self, key: LaneKey, callers: list[_Caller]) -> asyncio.Future[None]:
        """Sends a batch on its way."""
        _, options, min_seqno = key
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        here = []
        for caller in callers:
            self._queued -= len(caller.vectors)
            if not caller.share.done():
                caller.work.lap("queue")
                here.append(caller)
        try:
            if here:
                self._ask(here, options, dict(min_seqno), ended)
            else:
                ended.set_result(None)
        except Exception as error:  # a defect: the lane, which takes what is returned here, goes on
            for caller in here:
                if not caller.share.done():
                    caller.share.set_exception(error)
            if not ended.done():
                ended.set_result(None)
        return ended

    def _ask(
        self,
        callers: list[_Caller],
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        ended: asyncio.Future[None],
    ) -> None:
        """Asks the shards for callers that travel together."""
        vectors = callers[0].vectors if len(callers) == 1 else np.concatenate([caller.vectors for caller in callers])
        question = Question(callers[-1].record, vectors, options, min_seqno)
        work = shared("batch", [caller.work for caller in callers])
        work.facts["queries"] = len(vectors)
        answers = Answers(len(question.record.shards), lambda: self._came(batch))
        batch = _Batch(callers, question, answers, work, ended, time.monotonic(), len(callers))
        last_s = 0.0
        for caller in callers:
            caller.batch = batch
            last_s = max(last_s, caller.answer_by_s)
        try:
            self._fanout.ask(question, answers, Deadline(last_s), work)
        except Exception as error:  # a defect: each caller reports it, and the router goes on
            self._fail(batch, callers, error)
            return
        if not answers.owed:
            self._came(batch)

    def _came(self, batch: _Batch) -> None:
        """All nodes have answered, or failed."""
        callers = [caller for caller in batch.callers if caller.batch is batch and not caller.share.done()]
        in_time = 0  # callers whose time was up before are no work that was done
        for caller in callers:
            in_time += len(caller.vectors)
        pace = batch.callers[0].punctuality
        pace.came_back(batch.started_s, in_time * batch.answers.share_in_time(), time.monotonic())
        if callers:
            self._settle(batch, callers)

    def _ring(self, now_s: float) -> float:
        """Settles the callers whose time is up; returns when that of the next one is."""
        late: dict[_Batch | None, list[_Caller]] = {}
        soon_s = now_s + RING_TOGETHER_S
        next_s = float("inf")
        for caller in self._callers:
            if caller.share.done():
                continue
            if caller.answer_by_s <= soon_s:
                late.setdefault(caller.batch, []).append(caller)
            else:
                next_s = min(next_s, caller.answer_by_s)
        for batch, callers in late.items():
            if batch is not None:
                self._settle(batch, callers)
                continue
            for caller in callers:
                caller.share.set_exception(errors.DeadlineExceeded("the deadline passed behind other searches"))
        return next_s

    def _settle(self, batch: _Batch, callers: Sequence[_Caller]) -> None:
        """Gives these callers of a batch, which wait for it, their share of what came back so far."""
        for caller in callers:
            caller.batch = None
        self._callers.difference_update(callers)
        question, answers = batch.question, batch.answers
        reasons = {missing.reason for missing in answers.missing.values()} if answers.missing else frozenset()
        try:
            if "COLLECTION_NOT_FOUND" in reasons:
                raise errors.NotFound(f"collection {question.record.name} was deleted meanwhile")
            if not reasons.isdisjoint(_TOO_LARGE):
                if len(batch.callers) == 1:
                    raise errors.ResourceExhausted(
                        "the hits of a shard pass 64 MiB: ask for fewer queries, hits, vectors or payloads",
                        reason="RESPONSE_TOO_LARGE",
                    )
                self._spawn(batch, callers, self._one_by_one(batch, callers))
                return
            answered, coverage = list(answers.answered.values()), answers.coverage()
            hits = 0
            for answer in answered:
                hits += len(answer.scores)
            if hits <= MERGE_ON_LOOP_MAX:
                self._share_out(batch, callers, answered, _merge(batch, answered), coverage)
            else:
                self._spawn(batch, callers, self._merge_aside(batch, callers, answered, coverage))
        except Exception as error:  # what was raised above, or a defect: each caller reports it, and the router goes on
            self._fail(batch, callers, error)

    async def _merge_aside(
        self,
        batch: _Batch,
        callers: Sequence[_Caller],
        answered: Sequence[ShardAnswer],
        coverage: types_pb2.Coverage,
    ) -> None:
        """Merges in a thread what would hold up others."""
        winners = await asyncio.to_thread(_merge, batch, answered)
        self._share_out(batch, callers, answered, winners, coverage)

    async def _one_by_one(self, batch: _Batch, callers: Sequence[_Caller]) -> None:
        """Asks for each caller alone: their hits did not fit one message together. Those behind are watched as well."""
        waiting = [caller for caller in callers if not caller.share.done()]
        self._callers.update(waiting)
        for caller in waiting:
            self._alarm.by(caller.answer_by_s)
        for caller in waiting:
            if not caller.share.done():
                alone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._ask([caller], batch.question.options, batch.question.min_seqno, alone)
                await alone
        batch.left(len(callers))

    def _share_out(
        self,
        batch: _Batch,
        callers: Sequence[_Caller],
        answered: Sequence[ShardAnswer],
        winners: Winners,
        coverage: types_pb2.Coverage,
    ) -> None:
        batch.left(len(callers))  # first, so that the next batch leaves before these callers go on
        wanted = set(callers)
        first = 0
        for caller in batch.callers:
            queries = len(caller.vectors)
            if caller in wanted and not caller.share.done():
                caller.share.set_result(Share(answered, winners, first, queries, coverage))
            first += queries

    def _fail(self, batch: _Batch, callers: Sequence[_Caller], error: Exception) -> None:
        batch.left(len(callers), reason_of(error))
        for caller in callers:
            if not caller.share.done():
                caller.share.set_exception(error)

    def _spawn(self, batch: _Batch, callers: Sequence[_Caller], steps: Coroutine[Any, Any, None]) -> None:
        """Settles callers in a task."""

        async def run() -> None:
            try:
                await steps
            except Exception as error:
                self._fail(batch, callers, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _merge(batch: _Batch, answered: Sequence[ShardAnswer]) -> Winners:
    question, work = batch.question, batch.work
    work.skip()
    descending = question.record.metric != types_pb2.METRIC_L2
    winners = merge(answered, len(question.vectors), question.options.k, descending=descending)
    work.lap("merge")
    return winners
