"""Searches from admission to merged hits: the asyncio shell around batching, fan-out and merge.

A caller hands in its queries and awaits its share of a batch. The batch is asked of the shards once. Each of its callers keeps
its own deadline: one that cannot wait longer gets what came back so far, while the others of the batch wait on.
A caller that went away is dropped before its batch leaves; one that would be answered too late is refused when it comes
(`punctuality`).

Invariant: every search that was admitted is answered, refused or cancelled; `close` leaves no task behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from router.deadline import Deadline
from router.fanout import Answers, Fanout, Question
from router.merge import ShardAnswer, Winners, merge
from router.validation import Matrix, SearchOptions
from vectorfleet import errors, limits
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.lanes import Lanes
from vectorfleet.punctuality import Punctuality
from vectorfleet.telemetry.work import Work, current, shared
from vectorfleet.v1 import types_pb2

QUEUED_QUERIES_MAX: Final = 16 * limits.QUERIES_MAX
MERGE_ON_LOOP_MAX: Final = 20_000
"""Hits that are merged on the event loop; more go to a thread, so that others are not held up."""
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
class _Waiting:
    record: CollectionRecord
    vectors: Matrix
    deadline: Deadline
    punctuality: Punctuality
    share: asyncio.Future[Share]
    work: Work = field(default_factory=current)
    """Whose it is."""


def _lane(record: CollectionRecord, options: SearchOptions, min_seqno: Mapping[int, int]) -> LaneKey:
    return record.uid, options, tuple(sorted(min_seqno.items()))


class Searches:
    """Admits searches, batches them, and gives each caller its share."""

    def __init__(self, fanout: Fanout, *, in_flight_max: int = 2) -> None:
        self._fanout = fanout
        self._lanes: Lanes[LaneKey, _Waiting] = Lanes(
            self._carry, in_flight_max=in_flight_max, weight_max=limits.QUERIES_MAX
        )
        self._queued = 0
        self._punctuality: dict[LaneKey, Punctuality] = {}

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
        """Answers validated queries.

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
        """
        if self._queued + len(vectors) > QUEUED_QUERIES_MAX:
            raise errors.ResourceExhausted(f"{self._queued} queries wait already")
        key = _lane(record, options, min_seqno)
        punctuality = self._admitted(key, len(vectors), deadline)
        waiting = _Waiting(record, vectors, deadline, punctuality, asyncio.get_running_loop().create_future())
        self._queued += len(vectors)
        self._punctuality[key] = punctuality
        punctuality.enter(len(vectors))
        self._lanes.put(key, waiting, len(vectors))
        try:
            return await waiting.share
        finally:
            punctuality.leave(len(vectors))
            if not punctuality.ahead:
                self._punctuality.pop(key, None)

    def refuse_late(
        self,
        record: CollectionRecord,
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        queries: int,
        deadline: Deadline,
    ) -> None:
        """Refuses, before any work is done for it, a search that `search` would refuse as too late."""
        self._admitted(_lane(record, options, min_seqno), queries, deadline)

    def _admitted(self, key: LaneKey, queries: int, deadline: Deadline) -> Punctuality:
        punctuality = self._punctuality.get(key) or Punctuality()
        left_s = deadline.remaining_s()
        if not punctuality.admits(queries, left_s, time.monotonic()):
            raise errors.ResourceExhausted(
                f"{punctuality.ahead} queries are ahead, and {queries} more would come back in about "
                f"{punctuality.expected_s(queries):.2g} s; the call has {left_s:.2g} s left"
            )
        return punctuality

    async def close(self) -> None:
        """Cancels all searches."""
        for waiting in await self._lanes.close():
            waiting.share.cancel()

    async def _carry(self, key: LaneKey, batch: list[_Waiting]) -> None:
        _, options, min_seqno = key
        self._queued -= sum(len(waiting.vectors) for waiting in batch)
        try:
            here = [waiting for waiting in batch if not waiting.share.done()]
            for waiting in here:
                waiting.work.lap("queue")
            if here:
                await self._answer(here, options, dict(min_seqno))
        except Exception as error:  # a defect: each caller reports it, and the router goes on
            for waiting in batch:
                if not waiting.share.done():
                    waiting.share.set_exception(error)
        finally:
            for waiting in batch:
                waiting.share.cancel()  # no effect on those that are answered

    async def _answer(self, batch: list[_Waiting], options: SearchOptions, min_seqno: Mapping[int, int]) -> None:
        """Asks the shards, and settles each caller when all have answered or its own time is up."""
        with shared("batch", [waiting.work for waiting in batch]) as work:
            work.facts["queries"] = sum(len(waiting.vectors) for waiting in batch)
            await self._ask(batch, options, min_seqno)

    async def _ask(self, batch: list[_Waiting], options: SearchOptions, min_seqno: Mapping[int, int]) -> None:
        vectors = batch[0].vectors if len(batch) == 1 else np.concatenate([waiting.vectors for waiting in batch])
        question = Question(batch[-1].record, vectors, options, min_seqno)
        answers = Answers(len(question.record.shards))
        answer_by_s = {waiting: waiting.deadline.answer_by_s() for waiting in batch}
        started_s = time.monotonic()
        asking = self._fanout.ask(question, answers, Deadline(max(answer_by_s.values())))
        try:
            left = batch
            while left:
                patience_s = min(answer_by_s[waiting] for waiting in left) - time.monotonic()
                if asking:
                    await asyncio.wait(asking, timeout=max(0.0, patience_s))
                if all(task.done() for task in asking):
                    for task in asking:
                        task.result()
                    # Callers whose time was up before are no work that was done.
                    in_time = sum(len(waiting.vectors) for waiting in left if not waiting.share.done())
                    batch[0].punctuality.came_back(started_s, in_time * answers.share_in_time(), time.monotonic())
                    break
                now_s = time.monotonic()
                await self._settle(batch, question, answers, [w for w in left if answer_by_s[w] <= now_s])
                left = [waiting for waiting in left if not waiting.share.done()]
        finally:
            unfinished = [task for task in asking if task.cancel()]
            await asyncio.gather(*unfinished, return_exceptions=True)
        await self._settle(batch, question, answers, left)

    async def _settle(
        self, batch: list[_Waiting], question: Question, answers: Answers, callers: Sequence[_Waiting]
    ) -> None:
        """Gives these callers of a batch their share of what came back so far."""
        if not callers:
            return
        reasons = {missing.reason for missing in answers.missing.values()}
        if "COLLECTION_NOT_FOUND" in reasons:
            raise errors.NotFound(f"collection {question.record.name} was deleted meanwhile")
        if reasons & _TOO_LARGE:
            if len(batch) == 1:
                raise errors.ResourceExhausted(
                    "the hits of a shard pass 64 MiB: ask for fewer queries, hits, vectors or payloads",
                    reason="RESPONSE_TOO_LARGE",
                )
            await self._one_by_one(callers, question)
            return
        answered = list(answers.answered.values())
        coverage = answers.coverage(placement_for(question.record).shards_to_search())
        descending = question.record.metric != types_pb2.METRIC_L2
        arguments = (answered, len(question.vectors), question.options.k)
        work = current()
        work.skip()
        if sum(len(answer.scores) for answer in answered) <= MERGE_ON_LOOP_MAX:
            winners = merge(*arguments, descending=descending)
        else:
            winners = await asyncio.to_thread(merge, *arguments, descending=descending)
        work.lap("merge")
        first = 0
        wanted = set(callers)
        for waiting in batch:
            if waiting in wanted and not waiting.share.done():
                waiting.share.set_result(Share(answered, winners, first, len(waiting.vectors), coverage))
            first += len(waiting.vectors)

    async def _one_by_one(self, callers: Sequence[_Waiting], question: Question) -> None:
        """Asks for each caller alone: their hits did not fit one message together."""
        for waiting in callers:
            try:
                if not waiting.share.done():
                    await self._answer([waiting], question.options, question.min_seqno)
            except errors.VectorfleetError as error:
                if not waiting.share.done():
                    waiting.share.set_exception(error)
