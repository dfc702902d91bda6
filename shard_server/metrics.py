"""What a shard server counts: searches and commits stage by stage, and how its replicas and the machine stand.

Events are counted where they happen, from any thread, through series that are looked up once. Gauges are set when somebody
scrapes (`gauges.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from shard_server.engine import stages
from vectorfleet.metrics import COUNTS, STAGE_S, Calls, Counter, Metrics

SEARCH_STAGES: Final = {"queue": "it waits for a search thread", **stages.SEARCH}
COMMIT_STAGES: Final = {"queue": "a write waits for the commit before it", "thread": "for a thread", **stages.COMMIT}


class ShardMetrics:
    """What happens to searches and writes."""

    def __init__(self, metrics: Metrics) -> None:
        self.call_ended: Final = Calls(metrics).ended
        search = metrics.histogram(
            "search_stage_seconds",
            f"Time of one shard's search in a part of it ({', '.join(SEARCH_STAGES)})",
            STAGE_S,
            "stage",
        )
        self._search = {stage: search.labels(stage).observe for stage in SEARCH_STAGES}
        commit = metrics.histogram(
            "commit_stage_seconds",
            f"Time of a group commit in a part of it ({', '.join(COMMIT_STAGES)})",
            STAGE_S,
            "stage",
        )
        self._commit = {stage: commit.labels(stage).observe for stage in COMMIT_STAGES}
        self.search_queries: Final = metrics.histogram("search_queries", "Queries of a search call", COUNTS).observe
        self._writes = metrics.histogram("commit_writes", "Writes that share a commit", COUNTS).observe
        self._missed = metrics.counter(
            "missed_searches_total", "Searches of one shard that gave no answer, by reason of docs/errors.md", "reason"
        )
        self._by_reason: dict[str, Counter] = {}

    def searched(self, spent_s: Mapping[str, float]) -> None:
        """Takes the seconds that one shard's search spent in each stage."""
        for stage, seconds in spent_s.items():
            self._search[stage](seconds)

    def shard_missed(self, reason: str) -> None:
        """Counts a shard that could not be searched."""
        if reason not in self._by_reason:
            self._by_reason[reason] = self._missed.labels(reason)
        self._by_reason[reason].inc()

    def writes_waited(self, seconds: Sequence[float]) -> None:
        """Takes how long each write of a commit has waited for it."""
        self._writes(len(seconds))
        for one in seconds:
            self._commit["queue"](one)

    def committed(self, spent_s: Mapping[str, float]) -> None:
        """Takes the seconds that one commit spent in each stage."""
        for stage, seconds in spent_s.items():
            self._commit[stage](seconds)
