"""The recall of live traffic, measured: now and then a search that was answered is asked again with `exact`.

One query of one search at a time, seldom (`--recall-check-rate`), behind everything else: it travels alone, nodes work on it in a
thread of the lowest priority, and it is dropped where searches wait, here or there. A check that takes long makes the next one
wait longer, so that checks take at most `SHARE_MAX` of the time. An exact search reads every raw vector of the collection: on
data that does not fit into memory that is the disk's work, too, which is why the default is small.

What is asked again is what its caller asked, under the same filter. Nothing of it is kept or logged: two numbers are added up,
hits expected and hits found. Points that are written between the two searches make them differ a little.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.deadline import Deadline
from router.fanout import Fanout, Question
from router.merge import merge
from router.metrics import RouterMetrics
from router.searches import Share
from router.validation import Matrix, SearchOptions
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.v1 import types_pb2

RATE_DEFAULT: Final = 0.05
"""Checks a second."""
SHARE_MAX: Final = 0.02
"""Of the time that passes, for checks."""
TIMEOUT_S: Final = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One query as it was asked and answered."""

    record: CollectionRecord
    vector: Matrix
    options: SearchOptions
    min_seqno: Mapping[int, int]
    scores: NDArray[np.float32]


class RecallChecks:
    """Takes samples and asks them again. Belongs to one event loop."""

    def __init__(self, fanout: Fanout, metrics: RouterMetrics, busy: Callable[[], bool], *, rate: float) -> None:
        """Takes samples at once; asks while `run` runs.

        Args:
            fanout: asks the nodes.
            metrics: are told what came out.
            busy: whether searches wait.
            rate: checks a second at most; 0: none.
        """
        self._fanout = fanout
        self._metrics = metrics
        self._busy = busy
        self._pause_s = 1 / rate if rate else float("inf")
        self._due_s = time.monotonic() if rate else float("inf")
        """When the next sample may be taken; infinity while one is worked on."""
        self._taken: asyncio.Queue[_Sample] = asyncio.Queue(1)

    def offer(
        self,
        record: CollectionRecord,
        vectors: Matrix,
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        share: Share,
    ) -> None:
        """A search was answered: takes one of its queries, where a check is due."""
        if time.monotonic() < self._due_s or options.exact or share.coverage.missing:
            return
        self._due_s = float("inf")
        row = secrets.randbelow(len(vectors))
        first, last = share.winners.offsets[share.first_query + row : share.first_query + row + 2]
        again = options._replace(exact=True, with_payload=False, with_vector=False)
        self._taken.put_nowait(
            _Sample(record, vectors[row : row + 1], again, min_seqno, share.winners.scores[first:last])
        )

    async def run(self) -> None:
        """Checks what was taken, for ever."""
        while True:
            sample = await self._taken.get()
            start_s = time.monotonic()
            try:
                outcome = await self._check(sample)
            except Exception:
                _log.exception("recall could not be checked")
                outcome = "failed"
            self._metrics.recall_checked(outcome)
            now_s = time.monotonic()
            self._due_s = now_s + max(self._pause_s, (now_s - start_s) / SHARE_MAX)

    async def _check(self, sample: _Sample) -> str:
        if self._busy():
            return "dropped"
        question = Question(sample.record, sample.vector, sample.options, sample.min_seqno, background=True)
        deadline = Deadline.after(TIMEOUT_S)
        async with asyncio.timeout_at(deadline.at_s):
            answers = await self._fanout.answer(question, deadline)
        missing = answers.coverage().missing
        if missing:
            return "dropped" if {one.reason for one in missing} == {"OVERLOADED"} else "failed"
        descending = sample.record.metric != types_pb2.METRIC_L2
        best = merge(list(answers.answered.values()), 1, sample.options.k, descending=descending).scores
        if len(best):
            self._metrics.recalled(sample.record, _found(sample.scores, best, descending), len(best))
        return "measured"


def _found(scores: NDArray[np.float32], best: NDArray[np.float32], descending: bool) -> int:
    """How many of the hits are as good as the worst of the best: a tie is no miss."""
    good = scores >= best[-1] if descending else scores <= best[-1]
    return min(int(np.count_nonzero(good)), len(best))
