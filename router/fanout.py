"""One batch of queries, asked of every shard that it needs, and whatever came back by a given moment.

It neither merges (merge.py) nor knows who waits (searches.py). A node is asked once for all of its shards. A shard that
cannot answer costs its own part: it ends in `missing` with a reason of docs/errors.md, never in an exception.

A shard whose map was stale is asked once more, wherever a newer map says that it lives. Where shards have several copies, a
question to a node that is late, or failed, may be put to others as well (hedging.py).

The usual way, a question over the nodes' streams, is made of callbacks and has no task: the event loop's turns, and all that
makes a task, would cost a lone query more than asking and merging does. What is large, or asked again, has a task.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, Final

import numpy as np

from router.deadline import Deadline
from router.freshness import newer_state
from router.hedged_asking import Asking, Hedge, Hedges
from router.hedging import BURST, ShardOutcome
from router.merge import ShardAnswer
from router.node_stream import Outcome
from router.nodes import Node, NodePool
from router.replica_choice import by_node, several_copies
from router.validation import Matrix, SearchOptions
from vectorfleet import errors
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.telemetry.work import Work, current
from vectorfleet.v1 import types_pb2

_STAGES: Final = tuple(
    name.removeprefix("SEARCH_STAGE_").lower() for name, number in shard_service_pb2.SearchStage.items() if number
)
_TOOK_ANY: Final = itemgetter(1)
"""Of a stage and its microseconds."""
STREAMED_BYTES_MAX: Final = 1 << 20
"""Of a question and its answer: what is larger is a call of its own, so that small ones need not wait behind it."""


_LATE: Final = frozenset({"DEADLINE_EXCEEDED", "OVERLOADED"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What the shards of one collection are asked."""

    record: CollectionRecord
    vectors: Matrix
    options: SearchOptions
    min_seqno: Mapping[int, int]
    """Shard → the seqno that it must have applied; absent: none."""
    background: bool = False
    """Nobody waits for it; nodes may refuse it."""


@dataclass(slots=True)
class Answers:
    """What came back so far, and who still owes an answer."""

    shards_total: int
    came: Callable[[], None]
    """Called when the last of those who were asked has answered or failed; but not by `Fanout.ask`, nor after `give_up`."""
    asked: Sequence[ShardAssignment] = ()
    """The shards that a whole answer speaks for."""
    answered: dict[int, ShardAnswer] = field(default_factory=dict)
    missing: dict[int, types_pb2.MissingShard] = field(default_factory=dict)
    owed: dict[Hashable, Callable[[], object]] = field(default_factory=dict)
    """What gives up each of the calls that are under way."""

    def settle(self, call: Hashable) -> None:
        """A call has ended."""
        if self.owed.pop(call, None) is not None and not self.owed:
            self.came()

    def give_up(self) -> None:
        """Ends the calls that are under way."""
        owed, self.owed = self.owed, {}
        self.came = _nothing  # whoever waited most likely holds these answers: no circle for the garbage collector
        for give_up in owed.values():
            give_up()

    def share_in_time(self) -> float:
        """Of the shards, those that were not late: what is missing for another reason took no time."""
        late = 0
        for missing in self.missing.values():
            late += missing.reason in _LATE
        return 1 - late / self.shards_total

    def coverage(self) -> types_pb2.Coverage:
        """Who answered; shards that said nothing yet are missing because the time is up."""
        coverage = types_pb2.Coverage(shards_total=self.shards_total, shards_answered=len(self.answered))
        for shard in self.asked:
            if shard.shard not in self.answered:
                late = types_pb2.MissingShard(
                    shard=shard.shard, reason="DEADLINE_EXCEEDED", message="the shard did not answer in time"
                )
                coverage.missing.append(self.missing.get(shard.shard, late))
        return coverage


@dataclass(slots=True, eq=False)
class _Errand:
    """What one node is asked of a question, by whom it is told, and what for."""

    question: Question
    node_id: str
    node: Node
    shards: Sequence[ShardAssignment]
    answers: Answers
    deadline: Deadline
    epoch: int
    again: bool
    asked_by: Work
    work: Work
    queries: int
    light: bool
    """It travels over the node's stream."""
    usual: bool
    """The time that it takes says something of the node: what is long by its nature does not."""
    hedge: Hedge[_Errand] | None = None
    """What is told its outcome; None: its shards are asked of nobody else."""
    forget: Callable[[], object] = lambda: None
    """Lets nothing more be told of it."""
    _under_way: bool = False

    def left(self) -> None:
        """The node is asked."""
        self._under_way = True
        self.node.outstanding += self.queries

    def ended(self, error: str = "") -> None:
        """The node has answered, or is not waited for any more."""
        if not self._under_way:
            return
        self._under_way = False
        self.work.end(error)
        self.node.outstanding -= self.queries
        if self.usual:
            ended_ns = self.work.ended_ns
            self.node.latency.ended((ended_ns - self.work.begun_ns) / 1e9, error, ended_ns / 1e9)

    def give_up(self) -> None:
        """Its own answer is not needed any more."""
        self.forget()
        self.ended("CANCELLED")
        self.answers.settle(self)

    def abandon(self) -> None:
        """Nobody waits for any answer to the question any more."""
        self.forget()
        self.ended("CANCELLED")
        if self.hedge is not None:
            self.hedge.end()


class Fanout:
    """Asks shards wherever the newest shard map says that they live."""

    def __init__(
        self,
        coordinator: Coordinator,
        nodes: NodePool,
        hedged: Callable[[str, str], None] = lambda cause, outcome: None,
    ) -> None:
        """Takes what it asks with.

        Args:
            coordinator: has the shard map.
            nodes: the ways to the nodes.
            hedged: is told why a question was put to other copies as well (`hedging.CAUSES`), and how that went (`OUTCOMES`).
        """
        self._coordinator = coordinator
        self._nodes = nodes
        self._draw = random.Random()  # noqa: S311 (no secret)
        self._hedges = Hedges(coordinator, nodes, Asking(self._ask_another, self._settle, hedged), self._draw)
        self._state = coordinator.state
        self._visited: dict[str, tuple[CollectionRecord, tuple[ShardAssignment, ...]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, question: Question, answers: Answers, deadline: Deadline, work: Work) -> None:
        """Asks all shards of a question.

        Args:
            question: what they are asked.
            answers: fills as they answer; nothing is owed where nobody could be asked.
            deadline: until when they may work on it.
            work: gets a part for each node.
        """
        state = self._coordinator.state
        answers.asked = self._visits(question.record, state)
        self._ask(question, answers.asked, answers, deadline, state, work)

    async def answer(self, question: Question, deadline: Deadline) -> Answers:
        """Asks all shards, and waits until none owes an answer; the caller bounds the wait."""
        whole = asyncio.Event()
        answers = Answers(len(question.record.shards), whole.set)
        try:
            self.ask(question, answers, deadline, current())
            if answers.owed:
                await whole.wait()
        finally:
            answers.give_up()
        return answers

    async def close(self) -> None:
        """Ends what is still asked; nothing more may be."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _visits(self, record: CollectionRecord, state: ClusterState) -> tuple[ShardAssignment, ...]:
        """The shards that a search must visit: worked out once for each state of the cluster."""
        if state is not self._state:
            self._state = state
            self._visited.clear()
        known = self._visited.get(record.uid)
        if known is None or known[0] is not record:
            by_number = {shard.shard: shard for shard in record.shards}
            visits = tuple(by_number[number] for number in placement_for(record).shards_to_search())
            known = self._visited[record.uid] = record, visits
        return known[1]

    def _ask(
        self,
        question: Question,
        shards: Sequence[ShardAssignment],
        answers: Answers,
        deadline: Deadline,
        state: ClusterState,
        work: Work,
        *,
        again: bool = False,
    ) -> None:
        queries = len(question.vectors)
        light = _travels_light(question)
        usual = not question.options.exact and queries <= BURST
        for node_id, group in by_node(shards, self._nodes.standings(state), self._draw).items():
            node = self._nodes.find(node_id, state)
            if node is None or node.circuit.open:
                why = f"node {node_id} does not answer" if node_id else "no node holds the shard yet"
                for shard in group:
                    _miss(answers, shard.shard, "SHARD_UNAVAILABLE", why)
                continue
            part = work.part("node", calls_out=True)
            asked = question, node_id, node, group, answers, deadline, state.epoch, again, work, part
            errand = _Errand(*asked, queries, light, usual)
            if several_copies(group) and not question.background:
                errand.hedge = self._hedges.race(errand)
            self._send(errand)

    def _send(self, errand: _Errand) -> None:
        """Asks a node."""
        errand.work.facts["node"] = errand.node_id
        errand.left()
        if not errand.light:
            errand.forget = self._spawn(errand.answers, self._call(errand), errand).cancel
            return
        try:
            message = shard_service_pb2.SearchStreamRequest()
            _fill(message.request, errand)  # in place: a message that is put into another is copied
            for name, value in errand.work.outgoing:
                message.request.context[name] = value
            errand.forget = errand.node.ask(message, errand.deadline.remaining_s(), partial(self._told, errand))
        except Exception as error:  # a defect: it costs what this node holds, as if the node had said so
            told = asyncio.get_running_loop().call_soon(self._told, errand, _defect(error))
            errand.forget = told.cancel
        errand.answers.owed[errand] = errand.abandon

    def _ask_another(self, first: _Errand, node_id: str, shards: Sequence[ShardAssignment], cause: str) -> _Errand:
        """Asks another node for shards that a question to the first one is about."""
        node = self._nodes.find(node_id, self._coordinator.state)
        assert node is not None, "it was chosen for how it stands"
        work = first.asked_by.part("node", calls_out=True)
        work.facts["hedge"] = cause
        errand = replace(first, node_id=node_id, node=node, shards=shards, work=work)
        self._send(errand)
        return errand

    async def _call(self, errand: _Errand) -> None:
        """Asks a node in a call of its own."""
        request = shard_service_pb2.SearchRequest()
        _fill(request, errand)
        outcome: Outcome
        with errand.work:
            try:
                outcome = await errand.node.call(
                    errand.node.stub.Search(request, timeout=errand.deadline.remaining_s())
                )
            except errors.VectorfleetError as error:
                outcome = error
            self._told(errand, outcome)

    def _told(self, errand: _Errand, outcome: Outcome) -> None:
        """Takes what a node said: each of its shards has answered, or has failed."""
        try:
            self._take(errand, outcome)
        except Exception as error:  # a defect: it must not leave callers to wait for a node that has spoken
            defect = _defect(error)
            errand.abandon()
            for shard in errand.shards:
                _miss(errand.answers, shard.shard, defect.reason, f"node {errand.node_id}: {defect.message}")
        finally:
            errand.answers.settle(errand)

    def _take(self, errand: _Errand, outcome: Outcome) -> None:
        outcomes: dict[int, ShardOutcome] = {}
        failed = ""
        if isinstance(outcome, errors.VectorfleetError):
            failed = outcome.reason
            for shard in errand.shards:
                outcomes[shard.shard] = outcome
        else:
            results: dict[int, shard_service_pb2.ShardResult] = {}
            errand.work.facts["shards_us"] = stages_us = {}
            for result in outcome.results:
                results[result.shard] = result
                named = zip(_STAGES, result.stage_us, strict=False)
                stages_us[result.shard] = dict(filter(_TOOK_ANY, named))
            for shard in errand.shards:
                told = outcomes[shard.shard] = _read(results.get(shard.shard), errand.question)
                if not isinstance(told, ShardAnswer):
                    failed = failed or told.reason
        errand.ended(failed)
        if errand.hedge is None:
            self._settle(errand, outcomes)
        else:
            errand.hedge.told(errand.node_id, outcomes)

    def _settle(self, errand: _Errand, outcomes: Mapping[int, ShardOutcome]) -> None:
        """Notes what counts for shards."""
        answers = errand.answers
        stale = []
        for number, outcome in outcomes.items():
            if isinstance(outcome, ShardAnswer):
                answers.answered[number] = outcome
            elif outcome.reason == "STALE_SHARD_MAP" and not errand.again:
                stale.append(number)
            else:
                reason = "SHARD_UNAVAILABLE" if outcome.reason == "UNREACHABLE" else outcome.reason
                _miss(answers, number, reason, f"node {errand.node_id}: {outcome.message}")
        if stale:
            self._spawn(answers, self._ask_again(errand, stale))

    async def _ask_again(self, errand: _Errand, stale: Sequence[int]) -> None:
        answers, deadline = errand.answers, errand.deadline
        state = await newer_state(self._coordinator, errand.epoch, deadline)
        record = state.by_uid(errand.question.record.uid)
        if record is None:
            for number in stale:
                _miss(answers, number, "COLLECTION_NOT_FOUND", "the collection was deleted meanwhile")
            return
        shards = [shard for shard in record.shards if shard.shard in stale]
        self._ask(errand.question, shards, answers, deadline, state, errand.asked_by, again=True)

    def _spawn(
        self, answers: Answers, steps: Coroutine[Any, Any, None], errand: _Errand | None = None
    ) -> asyncio.Task[None]:
        """Lets a task be among what is owed."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                defect = _defect(error)
                if errand is not None:
                    self._told(errand, defect)
            answers.settle(errand or task)

        task = asyncio.create_task(steps)
        self._tasks.add(task)
        answers.owed[errand or task] = task.cancel if errand is None else errand.abandon
        task.add_done_callback(ended)
        return task


def _read(result: shard_service_pb2.ShardResult | None, question: Question) -> ShardOutcome:
    """Reads one shard's result, and refuses one that is not what was asked for."""
    if result is None:
        return errors.InternalError("the node left the shard out of its answer")
    if result.error_reason:
        return errors.error_for(result.error_reason, result.error_message)
    hits, remainder = divmod(len(result.scores), 4)
    dim = question.record.dim
    sound = (
        remainder == 0
        and len(result.counts) == 4 * len(question.vectors)
        and len(result.ids) == hits
        and len(result.payloads) in (0, hits)
        and len(result.vectors) in (0, 4 * dim * hits)
    )
    counts = np.frombuffer(result.counts, "<u4") if sound else np.empty(0, np.uint32)
    if not sound or int(np.add.reduce(counts, dtype=np.int64)) != hits:
        return errors.InternalError("the node's answer does not fit the question")
    scores = np.frombuffer(result.scores, "<f4")
    return ShardAnswer(
        result.shard, counts, scores, result.ids, result.payloads, result.vectors, result.matching_points
    )


def _travels_light(question: Question) -> bool:
    """Whether question and answer are small enough to share a stream with others: what is large would hold them up."""
    options = question.options
    hits_bytes = len(question.vectors) * options.k * options.hit_bytes(question.record.dim)
    return question.vectors.nbytes + hits_bytes <= STREAMED_BYTES_MAX


def _fill(request: shard_service_pb2.SearchRequest, errand: _Errand) -> None:
    question = errand.question
    options = question.options
    request.collection_uid = question.record.uid
    request.epoch = errand.epoch
    for shard in errand.shards:
        request.targets.add(shard=shard.shard, min_seqno=question.min_seqno.get(shard.shard, 0))
    request.vectors = question.vectors.tobytes()
    request.query_count = len(question.vectors)
    request.k = options.k
    request.nprobe = options.nprobe
    request.oversample = options.oversample
    request.exact = options.exact
    request.with_payload = options.with_payload
    request.with_vector = options.with_vector
    request.background = question.background
    if options.wanted:
        request.filter.MergeFromString(options.wanted)


def _nothing() -> None: ...


def _defect(error: BaseException) -> errors.VectorfleetError:
    """What callers are told of a defect of this router; the log is told all of it."""
    _log.error("a node could not be asked, or its answer not be taken", exc_info=error)
    return errors.InternalError(f"{type(error).__name__} in the router; its log says more")


def _miss(answers: Answers, shard: int, reason: str, message: str) -> None:
    answers.missing[shard] = types_pb2.MissingShard(shard=shard, reason=reason, message=message)
