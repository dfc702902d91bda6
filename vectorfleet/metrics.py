"""What a process counts and times, and its text for Prometheus: the only module that knows prometheus_client.

`Metrics` makes a process's instruments. One that is off makes instruments that forget what they are told, so that who counts
need not ask whether anybody looks. Needs the `server` extra; a client never imports it.

A series costs memory for as long as the process lives, so labels are bounded: methods, codes, reasons, stages and nodes are
few; of what callers name (collections), `Names` lets only so many have series of their own. Ids, queries and messages never
become labels.
"""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Protocol, Self, cast

import prometheus_client
from prometheus_client import exposition
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from vectorfleet._version import __version__
from vectorfleet.errors import REASONS
from vectorfleet.telemetry.work import Work

NAMES_MAX: Final = 100
"""Names that callers choose, of which each has series of its own."""
SEARCH_OF_A_STREAM: Final = "SearchStream message"
OTHERS: Final = "_others"
"""Stands for all further ones. No collection has this name: they start with a letter or a digit."""
LATENCY_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
"""Bounds of whole calls; 0.2 is the aim for the 95th percentile of searches."""
STAGE_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
"""Bounds of a part of a call."""
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Bounds of what travels together."""


class Counter(Protocol):
    """Only grows."""

    def labels(self, *values: str) -> Self:
        """The series of these values; look it up once, it costs more than counting."""

    def remove(self, *values: str) -> None:
        """Forgets a series."""

    def inc(self, amount: float = 1) -> None:
        """Counts. Safe from any thread."""


class Gauge(Protocol):
    """Goes up and down."""

    def labels(self, *values: str) -> Self:
        """The series of these values."""

    def clear(self) -> None:
        """Forgets all series, so that what has gone is not shown with its last value for ever."""

    def set(self, value: float) -> None:
        """Replaces the value. Safe from any thread."""


class Histogram(Protocol):
    """Counts observations by size."""

    def labels(self, *values: str) -> Histogram:
        """The series of these values."""

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Adds one, and what it is an example of. From one thread, the event loop's; the text may be made in another."""


@dataclass(frozen=True, slots=True)
class Family:
    """An instrument as it is described."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


BUILD: Final = Family(
    "vectorfleet_build_info", "gauge", ("component", "version", "python"), "1; the labels say what runs here"
)


class Metrics:
    """The instruments of one process."""

    def __init__(self, component: str, *, enabled: bool = True) -> None:
        """Knows the process itself: CPU, memory, files, build.

        Args:
            component: of the names: `vectorfleet_<component>_…`.
            enabled: False: nothing is counted.
        """
        self.enabled: Final = enabled
        self.families: Final[list[Family]] = []
        """What was made, in order."""
        self._prefix = f"vectorfleet_{component}_"
        self._registry = prometheus_client.CollectorRegistry()
        if enabled:
            # One more series for each counter, to say when it began: nobody asks.
            prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
            prometheus_client.ProcessCollector(registry=self._registry)
            build = prometheus_client.Gauge(BUILD.name, BUILD.meaning, BUILD.labels, registry=self._registry)
            build.labels(component, __version__, platform.python_version()).set(1)

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Makes a counter; its name ends in `_total`."""
        full = self._named(name, "counter", meaning, labels)
        if not self.enabled:
            return _Forgetful()
        return cast(Counter, prometheus_client.Counter(full, meaning, labels, registry=self._registry))

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Makes a gauge."""
        full = self._named(name, "gauge", meaning, labels)
        if not self.enabled:
            return _Forgetful()
        return cast(Gauge, prometheus_client.Gauge(full, meaning, labels, registry=self._registry))

    def histogram(self, name: str, meaning: str, bounds: Sequence[float], *labels: str) -> Histogram:
        """Makes a histogram with these upper bounds."""
        full = self._named(name, "histogram", meaning, labels)
        if not self.enabled:
            return _Forgetful()
        made = _Bounded(full, meaning, tuple(bounds), labels)
        self._registry.register(made)
        return made

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """All series as text; takes some milliseconds.

        Args:
            accept: the scraper's HTTP header.

        Returns:
            The text, and its content type.
        """
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self._registry), content_type

    def _named(self, name: str, kind: str, meaning: str, labels: Sequence[str]) -> str:
        full = self._prefix + name
        self.families.append(Family(full, kind, tuple(labels), meaning))
        return full


class _Bounded(Collector):
    """A histogram for one thread: prometheus_client's own locks twice and walks its bounds, which takes five times as long.

    A search observes some ten to thirty times, so that this is most of what counting costs.
    """

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...], labels: Sequence[str]) -> None:
        self._name, self._meaning, self._labels = name, meaning, labels
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        """Of observations up to each bound and above the one before; the last: above all."""
        self._exemplars: list[Exemplar | None] = [None] * len(self._counts)
        self._sum = 0.0
        self._series: dict[tuple[str, ...], _Bounded] = {} if labels else {(): self}

    def labels(self, *values: str) -> _Bounded:
        if values not in self._series:
            self._series[values] = _Bounded(self._name, self._meaning, self._bounds, ())
        return self._series[values]

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        bucket = bisect_left(self._bounds, amount)
        self._counts[bucket] += 1
        self._sum += amount
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(dict(exemplar), amount, time.time())

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        above = float("inf")
        bounds = [floatToGoString(bound) for bound in (*self._bounds, above)]  # type: ignore[no-untyped-call]
        for values, one in list(self._series.items()):
            counted = zip(bounds, accumulate(one._counts), one._exemplars, strict=True)
            buckets = [(le, count) if example is None else (le, count, example) for le, count, example in counted]
            family.add_metric(values, buckets, one._sum)
        return [family]


class _Forgetful:
    """An instrument of a process that nobody looks at."""

    def labels(self, *values: str) -> Self:
        return self

    def remove(self, *values: str) -> None: ...

    def clear(self) -> None: ...

    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None: ...


class Names:
    """Label values that callers choose, so many of them at most. A name that is gone makes room."""

    def __init__(self, most: int = NAMES_MAX) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The name itself, or `OTHERS` where there is no room for it."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHERS
            self._known.add(name)
        return name

    def retain(self, present: Collection[str] | Mapping[str, object]) -> list[str]:
        """Forgets the names that are not present; returns them, so that their series can be forgotten."""
        gone = [name for name in self._known if name not in present]
        self._known.difference_update(gone)
        return gone


class Calls:
    """The calls that a server answers: how many, how they ended, how long they took."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(
            "requests_total", "Calls by method and gRPC code; searches of a stream count as Search", "method", "code"
        )
        self._errors = metrics.counter(
            "errors_total", "Calls that failed, by method and reason of docs/errors.md", "method", "reason"
        )
        self._seconds = metrics.histogram(
            "request_seconds", "Time to answer a call; of a stream, its whole life", LATENCY_S, "method"
        )
        self._ends: dict[tuple[str, str], tuple[Counter, ...]] = {}
        self._timers: dict[str, Histogram] = {}

    def ended(self, work: Work) -> str:
        """Counts a call by its work; returns its method's name."""
        method = work.name.rpartition("/")[2]
        if method == SEARCH_OF_A_STREAM:
            method = "Search"
        exemplar = None if work.span is None else {"trace_id": work.span.trace_id}
        ends = self._ends.get((method, work.error))
        if ends is None:
            ends = self._ends[method, work.error] = self._counters(method, work.error)
        for counter in ends:
            counter.inc()
        timer = self._timers.get(method)
        if timer is None:
            timer = self._timers[method] = self._seconds.labels(method)
        timer.observe(work.took_ns / 1e9, exemplar)
        return method

    def _counters(self, method: str, reason: str) -> tuple[Counter, ...]:
        if not reason:
            return (self._requests.labels(method, "OK"),)
        return (self._requests.labels(method, REASONS[reason].code.name), self._errors.labels(method, reason))
