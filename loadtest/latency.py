"""A run of timed calls, summed up: rate and percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latencies:
    """Rate in queries a second; percentiles of one call in milliseconds."""

    queries_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, taken_s: Sequence[float], whole_s: float, queries_a_call: int) -> Latencies:
        """Sums up.

        Args:
            taken_s: seconds of each call.
            whole_s: seconds of wall clock in which they were made.
            queries_a_call: how many queries each call carried.
        """
        p50, p95, p99 = (float(value) * 1e3 for value in np.percentile(taken_s, (50, 95, 99)))
        return cls(len(taken_s) * queries_a_call / whole_s, p50, p95, p99)

    def as_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)
