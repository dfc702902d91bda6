"""What one process tells of the calls that it serves: from a call's metadata to its request id, its trace, its slow-query line.

Router and shard server have one each; `serving` calls `begin` and `end`. What operators may change while it runs is here, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from vectorfleet.errors import VectorfleetError
from vectorfleet.telemetry import context
from vectorfleet.telemetry.logs import Logs
from vectorfleet.telemetry.slow import SlowQueries
from vectorfleet.telemetry.tracing import Sampling, Tracing
from vectorfleet.telemetry.work import Work

_WRITES: Final = frozenset({"Upsert", "BulkUpsert", "Delete", "Write"})
_NOTHING: Final = context.Incoming("", None)


class Telemetry:
    """The telemetry of one process. Used from its event loop."""

    def __init__(
        self,
        *,
        logs: Logs | None = None,
        slow: SlowQueries | None = None,
        sampling: Sampling | None = None,
        tracing: Tracing | None = None,
        configuration: Mapping[str, str] | None = None,
    ) -> None:
        """Takes its parts; those that are absent are off, request ids never are."""
        self.configuration = configuration or {}
        """The process's options, as a bug report may show them."""
        self.metrics: Callable[[], Awaitable[bytes]] | None = None
        """Makes the text of its metrics; None: it has none. To be set by whoever counts."""
        self.logs = logs
        self.slow = slow or SlowQueries(0)
        self.sampling = sampling or Sampling(0)
        self._tracing = tracing
        self._ids = context.RequestIds()
        self._ended: Callable[[Work], None] | None = None

    def observe(self, ended: Callable[[Work], None]) -> None:
        """Has every call's work shown to `ended` when it has ended, for metrics."""
        self._ended = ended

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> Work:
        """Begins the work for a call.

        Args:
            method: its full name, `/package.Service/Method`.
            metadata: what the caller sent along.
        """
        came = context.read(metadata) if metadata else _NOTHING
        parent = came.parent
        # Where nothing is traced here, the next process still learns what the caller has decided.
        work = Work(method[1:], came.request_id or self._ids.make(), () if parent is None else parent.headers)
        if self._tracing is not None and self.sampling.wants(parent):
            self._tracing.begin(work, parent)
        return work

    def begin_message(self, stream: Work) -> Work:
        """Begins the work for one message of a stream, whose answer has its own time."""
        work = Work(f"{stream.name} message", f"{stream.request_id}/{self._ids.number()}", stream.headers)
        if stream.span is not None:
            work.span = stream.span.child(work, ())
        elif self._tracing is not None and not stream.headers and self.sampling.wants(None):
            self._tracing.begin(work, None)
        return work

    def end(self, work: Work, error: str = "") -> None:
        """Ends it.

        Args:
            work: of `begin`.
            error: a reason of docs/errors.md; "": it was answered.
        """
        work.end(error)
        if work.took_ns >= self.slow.threshold_ns and _is_query(work) and self.slow.admits():
            if self._tracing is not None and work.span is None:
                self._tracing.tell(work, None)
            self.slow.tell(work)
        if self._ended is not None:  # last, so that it sees a slow query's trace, too
            self._ended(work)

    @contextmanager
    def served(self, work: Work) -> Iterator[None]:
        """Makes a work of `begin` the current one while it is served, and ends it."""
        try:
            with work:
                yield
        except VectorfleetError as error:
            error.request_id = work.request_id
            raise
        finally:
            self.end(work)

    def close(self) -> None:
        """Sends the last spans; takes a bounded time."""
        if self._tracing is not None:
            self._tracing.close()


def _is_query(work: Work) -> bool:
    """Whether a collection was asked something. A load's writes all take long, and would leave no room for queries."""
    return "collection" in work.facts and work.name.rpartition("/")[2] not in _WRITES
