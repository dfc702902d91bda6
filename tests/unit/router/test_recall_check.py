"""Searches asked again with `exact`: which, how often, and what comes out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from router.fanout import Answers, Question
from router.merge import ShardAnswer, merge
from router.metrics import RouterMetrics
from router.recall_check import RecallChecks
from router.searches import Share
from router.validation import SearchOptions
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.metrics import Metrics
from vectorfleet.v1 import types_pb2

TIMEOUT_S = 10.0
OPTIONS = SearchOptions(k=4, nprobe=1, oversample=1.0, exact=False, with_payload=True, with_vector=True, wanted=b"")
VECTORS = np.arange(8, dtype=np.float32).reshape(2, 4)


def record(metric: int = types_pb2.METRIC_L2) -> CollectionRecord:
    return CollectionRecord("films", "u1", 4, metric, (ShardAssignment(0, 0, 2**64 - 1),))


def answer(*scores: float) -> ShardAnswer:
    ids = [f"{number}" for number in range(len(scores))]
    return ShardAnswer(0, np.asarray([len(scores)], np.uint32), np.asarray(scores, np.float32), ids)


def share(*scores: float, queries: int = 2, missing: bool = False) -> Share:
    one = answer(*scores)
    both = ShardAnswer(0, np.repeat(one.counts, queries), np.tile(one.scores, queries), list(one.ids) * queries)
    coverage = types_pb2.Coverage(shards_total=1, shards_answered=int(not missing))
    if missing:
        coverage.missing.add(shard=0, reason="SHARD_UNAVAILABLE")
    return Share([both], merge([both], queries, 4, descending=scores[0] > scores[-1]), 0, queries, coverage)


class Asked:
    """Plays the fan-out: answers every question with the same scores."""

    def __init__(self, *scores: float, reason: str = "") -> None:
        self.scores = scores
        self.reason = reason
        self.questions: list[Question] = []

    async def answer(self, question: Question, _: object) -> Answers:
        self.questions.append(question)
        if self.reason == "defect":
            raise RuntimeError(self.reason)
        answers = Answers(1, lambda: None, question.record.shards)
        if self.reason:
            answers.missing[0] = types_pb2.MissingShard(shard=0, reason=self.reason)
        else:
            answers.answered[0] = answer(*self.scores)
        return answers


class Checked:
    """Checks that run, and what they count."""

    def __init__(self, asked: Asked, *, rate: float = 1e6, busy: bool = False) -> None:
        self.metrics = Metrics("router")
        fanout: Any = asked
        self.checks = RecallChecks(fanout, RouterMetrics(self.metrics), lambda: busy, rate=rate)

    def lines(self) -> set[str]:
        text = self.metrics.text()[0].decode().splitlines()
        return {line.removeprefix("vectorfleet_router_recall_") for line in text if "router_recall" in line}

    async def until(self, line: str) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while line not in self.lines():  # noqa: ASYNC110 (nothing tells)
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(checked: Checked) -> AsyncIterator[Checked]:
    task = asyncio.create_task(checked.checks.run())
    yield checked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("metric", "served", "best", "found", "expected"),
    [
        (types_pb2.METRIC_L2, (1, 2, 5, 6), (1, 2, 3, 4), 2, 4),
        (types_pb2.METRIC_L2, (1, 2, 3, 4), (1, 2, 3, 4), 4, 4),
        (types_pb2.METRIC_L2, (1, 2, 2, 2), (1, 2), 2, 2),  # ties with the last are no misses
        (types_pb2.METRIC_DOT, (9, 5, 4), (9, 8, 5), 2, 3),
    ],
)
async def test_recall_is_the_share_of_hits_as_good_as_the_best(
    metric: int, served: tuple[float, ...], best: tuple[float, ...], found: int, expected: int
) -> None:
    asked = Asked(*best)
    async with running(Checked(asked)) as checked:
        checked.checks.offer(record(metric), VECTORS, OPTIONS, {0: 7}, share(*served))
        await checked.until(f'found_hits_total{{collection="films"}} {found}.0')
    assert f'expected_hits_total{{collection="films"}} {expected}.0' in checked.lines()
    (question,) = asked.questions
    assert question.background
    assert question.options == SearchOptions(
        k=4, nprobe=1, oversample=1.0, exact=True, with_payload=False, with_vector=False, wanted=b""
    )
    assert question.min_seqno == {0: 7}
    assert question.vectors.shape == (1, 4), "one of the queries"
    assert question.vectors[0].tolist() in VECTORS.tolist()


@pytest.mark.parametrize(
    ("reason", "busy", "outcome"),
    [
        ("OVERLOADED", False, "dropped"),
        ("", True, "dropped"),
        ("DATA_LOSS", False, "failed"),
        ("defect", False, "failed"),
    ],
)
async def test_what_cannot_be_measured_is_told_and_the_next_one_is_tried(reason: str, busy: bool, outcome: str) -> None:
    asked = Asked(1, 2, reason=reason)
    async with running(Checked(asked, busy=busy)) as checked:
        for count in (1, 2):
            async with asyncio.timeout(TIMEOUT_S):
                while f'checks_total{{outcome="{outcome}"}} {count}.0' not in checked.lines():
                    checked.checks.offer(record(), VECTORS, OPTIONS, {}, share(1, 2))
                    await asyncio.sleep(0)
    assert not any(line.startswith("expected_hits_total{") for line in checked.lines())
    assert bool(asked.questions) is not busy


async def test_one_at_a_time_and_no_oftener_than_asked() -> None:
    asked = Asked(1, 2)
    async with running(Checked(asked, rate=1e-6)) as checked:
        for _ in range(100):
            checked.checks.offer(record(), VECTORS, OPTIONS, {}, share(1, 2))
        await checked.until('checks_total{outcome="measured"} 1.0')
        for _ in range(100):
            checked.checks.offer(record(), VECTORS, OPTIONS, {}, share(1, 2))
            await asyncio.sleep(0)
    assert len(asked.questions) == 1


async def test_some_searches_are_never_taken() -> None:
    asked = Asked(1, 2)
    async with running(Checked(asked, rate=0)) as off:
        off.checks.offer(record(), VECTORS, OPTIONS, {}, share(1, 2))
        await asyncio.sleep(0)
    async with running(Checked(asked)) as checked:
        exact = SearchOptions(
            k=4, nprobe=0, oversample=0, exact=True, with_payload=False, with_vector=False, wanted=b""
        )
        checked.checks.offer(record(), VECTORS, exact, {}, share(1, 2))
        checked.checks.offer(record(), VECTORS, OPTIONS, {}, share(1, 2, missing=True))
        await asyncio.sleep(0)
    assert asked.questions == []
