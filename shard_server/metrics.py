"""What a shard server counts: searches and writes stage by stage, read off the work that telemetry keeps of each call.

Series are looked up once. Gauges are set when somebody scrapes (`gauges.py`).
"""

from __future__ import annotations

from typing import Final

from shard_server.engine import stages
from vectorfleet.metrics import COUNTS, STAGE_S, Calls, Counter, Metrics
from vectorfleet.telemetry.work import Work

SEARCH_STAGES: Final = {"queue": "it waits for a search thread", **stages.SEARCH}
WRITE_STAGES: Final = {
    "check": "it is checked",
    "queue": "it waits for the commit before it",
    "thread": "its commit waits for a thread",
    **stages.COMMIT,
}
BACKGROUND: Final = "background"
"""The fact of a search that nobody waits for."""


class ShardMetrics:
    """What happens to searches and writes."""

    def __init__(self, metrics: Metrics) -> None:
        self._calls = Calls(metrics)
        search = metrics.histogram(
            "search_stage_seconds",
            f"Time of one shard's search in a part of it ({', '.join(SEARCH_STAGES)})",
            STAGE_S,
            "stage",
        )
        self._search = {stage: search.labels(stage).observe for stage in SEARCH_STAGES}
        write = metrics.histogram(
            "write_stage_seconds", f"Time of a write in a part of it ({', '.join(WRITE_STAGES)})", STAGE_S, "stage"
        )
        self._write = {stage: write.labels(stage).observe for stage in WRITE_STAGES}
        self._queries = metrics.histogram("search_queries", "Queries of a search call", COUNTS).observe
        self._writes = metrics.histogram(
            "commit_writes", "Writes that shared a commit, as each of them saw it", COUNTS
        ).observe
        self._missed = metrics.counter(
            "missed_searches_total", "Searches of one shard that gave no answer, by reason of docs/errors.md", "reason"
        )
        self._by_reason: dict[str, Counter] = {}

    def ended(self, work: Work) -> None:
        """Counts a call by its work, and the stages of a search or a write."""
        if BACKGROUND in work.facts:
            return
        method = self._calls.ended(work)
        if method == "Search" and "queries" in work.facts:
            self._queries(work.facts["queries"])
            for shard in work.parts:
                self._searched(shard)
        elif method == "Write":
            for one in (work, *work.parts):
                for stage, seconds in one.spent_s.items():
                    self._write[stage](seconds)
            for commit in work.parts:
                self._writes(commit.facts["calls"])

    def _searched(self, shard: Work) -> None:
        if shard.error:
            if shard.error not in self._by_reason:
                self._by_reason[shard.error] = self._missed.labels(shard.error)
            self._by_reason[shard.error].inc()
            return
        for stage, seconds in shard.spent_s.items():
            self._search[stage](seconds)
