"""One batch of queries, asked of every shard that it needs, and whatever came back by a given moment.

It neither merges (merge.py) nor knows who waits (searches.py). A node is asked once for all of its shards. A shard that
cannot answer costs its own part: it ends in `missing` with a reason of docs/errors.md, never in an exception.

A shard whose map was stale is asked once more, wherever a newer map says that it lives.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from router.deadline import Deadline
from router.freshness import newer_state
from router.merge import ShardAnswer
from router.nodes import Node, NodePool
from router.replica_choice import read_replica
from router.validation import Matrix, SearchOptions
from vectorfleet import errors
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.placement import placement_for
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.telemetry.work import Work, current
from vectorfleet.v1 import types_pb2

_STAGES: Final = tuple(
    name.removeprefix("SEARCH_STAGE_").lower() for name, number in shard_service_pb2.SearchStage.items() if number
)
STREAMED_BYTES_MAX: Final = 1 << 20
"""Of a question and its answer: what is larger is a call of its own, so that small ones need not wait behind it."""


_LATE: Final = frozenset({"DEADLINE_EXCEEDED", "OVERLOADED"})


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
    """What came back so far."""

    shards_total: int
    answered: dict[int, ShardAnswer] = field(default_factory=dict)
    missing: dict[int, types_pb2.MissingShard] = field(default_factory=dict)

    def share_in_time(self) -> float:
        """Of the shards, those that were not late: what is missing for another reason took no time."""
        late = sum(missing.reason in _LATE for missing in self.missing.values())
        return 1 - late / self.shards_total

    def coverage(self, asked: Sequence[int]) -> types_pb2.Coverage:
        """Who answered; shards that said nothing yet are missing because the time is up."""
        missing = []
        for shard in asked:
            if shard not in self.answered:
                late = types_pb2.MissingShard(
                    shard=shard, reason="DEADLINE_EXCEEDED", message="the shard did not answer in time"
                )
                missing.append(self.missing.get(shard, late))
        return types_pb2.Coverage(shards_total=self.shards_total, shards_answered=len(self.answered), missing=missing)


class Fanout:
    """Asks shards wherever the newest shard map says that they live."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool) -> None:
        self._coordinator = coordinator
        self._nodes = nodes

    def ask(self, question: Question, answers: Answers, deadline: Deadline) -> list[asyncio.Task[None]]:
        """Asks all shards of a question; returns the tasks that fill `answers`, and raise nothing but cancellation."""
        shards = {shard.shard: shard for shard in question.record.shards}
        asked = [shards[number] for number in placement_for(question.record).shards_to_search()]
        return self._ask(question, asked, answers, deadline, self._coordinator.state.epoch)

    def _ask(
        self,
        question: Question,
        shards: Sequence[ShardAssignment],
        answers: Answers,
        deadline: Deadline,
        epoch: int,
        *,
        again: bool = False,
    ) -> list[asyncio.Task[None]]:
        by_node: defaultdict[str, list[ShardAssignment]] = defaultdict(list)
        state = self._coordinator.state
        for shard in shards:
            by_node[read_replica(shard, lambda node: self._nodes.reachable(node, state))].append(shard)
        tasks = []
        for node_id, group in by_node.items():
            node = self._nodes.find(node_id, state)
            if node is None or node.circuit.open:
                why = f"node {node_id} does not answer" if node_id else "no node holds the shard yet"
                for shard in group:
                    _miss(answers, shard.shard, "SHARD_UNAVAILABLE", why)
            else:
                asking = self._ask_node(question, node_id, node, group, answers, deadline, epoch, again)
                tasks.append(asyncio.create_task(asking))
        return tasks

    async def _ask_node(
        self,
        question: Question,
        node_id: str,
        node: Node,
        shards: Sequence[ShardAssignment],
        answers: Answers,
        deadline: Deadline,
        epoch: int,
        again: bool,
    ) -> None:
        with current().part("node", calls_out=True) as work:
            work.facts["node"] = node_id
            outcomes = await self._outcomes(question, node, shards, deadline, epoch, work)
            failed = (outcome.reason for outcome in outcomes.values() if not isinstance(outcome, ShardAnswer))
            work.end(next(failed, ""))

        stale = []
        for shard in shards:
            outcome = outcomes[shard.shard]
            if isinstance(outcome, ShardAnswer):
                answers.answered[shard.shard] = outcome
            elif outcome.reason == "STALE_SHARD_MAP" and not again:
                stale.append(shard.shard)
            else:
                reason = "SHARD_UNAVAILABLE" if outcome.reason == "UNREACHABLE" else outcome.reason
                _miss(answers, shard.shard, reason, f"node {node_id}: {outcome.message}")
        if stale:
            await self._ask_again(question, stale, answers, deadline, epoch)

    async def _outcomes(
        self,
        question: Question,
        node: Node,
        shards: Sequence[ShardAssignment],
        deadline: Deadline,
        epoch: int,
        work: Work,
    ) -> dict[int, ShardAnswer | errors.VectorfleetError]:
        """Asks a node for its shards; each has answered, or has failed."""
        message = shard_service_pb2.SearchStreamRequest()
        _fill(message.request, question, shards, epoch)  # in place: a message that is put into another is copied
        try:
            if _travels_light(question):
                for name, value in work.outgoing:
                    message.request.context[name] = value
                response = await node.search(message, deadline.remaining_s())
            else:
                response = await node.call(node.stub.Search(message.request, timeout=deadline.remaining_s()))
        except errors.VectorfleetError as error:
            return dict.fromkeys((shard.shard for shard in shards), error)
        by_shard = {result.shard: result for result in response.results}
        work.facts["shards_us"] = {
            result.shard: {stage: took_us for stage, took_us in zip(_STAGES, result.stage_us, strict=False) if took_us}
            for result in response.results
        }
        return {shard.shard: _read(by_shard.get(shard.shard), question) for shard in shards}

    async def _ask_again(
        self, question: Question, stale: Sequence[int], answers: Answers, deadline: Deadline, epoch: int
    ) -> None:
        state = await newer_state(self._coordinator, epoch, deadline)
        record = state.by_uid(question.record.uid)
        if record is None:
            for number in stale:
                _miss(answers, number, "COLLECTION_NOT_FOUND", "the collection was deleted meanwhile")
            return
        shards = [shard for shard in record.shards if shard.shard in stale]
        await asyncio.gather(*self._ask(question, shards, answers, deadline, state.epoch, again=True))


def _read(result: shard_service_pb2.ShardResult | None, question: Question) -> ShardAnswer | errors.VectorfleetError:
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
    if not sound or int(counts.sum(dtype=np.int64)) != hits:
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


def _fill(
    request: shard_service_pb2.SearchRequest, question: Question, shards: Sequence[ShardAssignment], epoch: int
) -> None:
    options = question.options
    request.collection_uid = question.record.uid
    request.epoch = epoch
    for shard in shards:
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


def _miss(answers: Answers, shard: int, reason: str, message: str) -> None:
    answers.missing[shard] = types_pb2.MissingShard(shard=shard, reason=reason, message=message)
