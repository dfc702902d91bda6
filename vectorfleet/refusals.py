"""Who was turned away before a handler of ours ran: into the process's log, and into the audit log where there is one.

Whoever is turned away decides how often that happens. So each kind of refusal gets a bounded number of lines a second; the others
are counted and told of in one line, by what they were.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from vectorfleet.audit import AuditLog

LINES_PER_S_MAX: Final = 20
KINDS_MAX: Final = 100
"""Different refusals that are told apart within a second."""

_log = logging.getLogger(__name__)


class Rate:
    """Lets through so many events a second and counts the others, by what they are."""

    def __init__(self, per_s: int = LINES_PER_S_MAX) -> None:
        self._per_s = per_s
        self._second = -1
        self._passed = 0
        self._held: dict[str, int] = {}

    def take(self, event: str, now_s: float) -> list[tuple[str, int]]:
        """Returns what is to be told now: (event, how many of it); what was held comes with the first of a later second."""
        told: list[tuple[str, int]] = []
        if int(now_s) != self._second:
            told, self._held = list(self._held.items()), {}
            self._second, self._passed = int(now_s), 0
        self._passed += 1
        if self._passed <= self._per_s:
            told.append((event, 1))
        elif event in self._held or len(self._held) < KINDS_MAX:
            self._held[event] = self._held.get(event, 0) + 1
        return told


class Refusals:
    """Tells of refusals, in the process's log alone until an audit log is opened. Each method serves one thread at a time."""

    def __init__(self) -> None:
        self._audit: AuditLog | None = None
        self._handshakes = Rate()
        self._peers = Rate()
        self._callers = Rate()

    def open(self, place: str) -> None:
        """Tells the audit log as well.

        Args:
            place: a path, or "-" for stdout; "": there is none.

        Raises:
            OSError: the file cannot be opened.
        """
        if place:
            self._audit = AuditLog(place)

    def handshake(self, why: str) -> None:
        """A TLS handshake failed; nothing is known of the other side."""
        for told, times in self._handshakes.take(why, time.monotonic()):
            _log.warning("a TLS handshake failed: %s%s", told, _counted(times))
            if self._audit is not None:
                self._audit.record(who="", method="TLS handshake", code="UNAUTHENTICATED", reason=told, calls=times)

    def peer(self, address: str, why: str) -> None:
        """We turned away a server that we called: it is not what its address says."""
        for told, times in self._peers.take(f"{address} {why}", time.monotonic()):
            where, _, reason = told.partition(" ")
            _log.warning("%s is not spoken to: %s%s", where, reason, _counted(times))
            if self._audit is not None:
                self._audit.record(
                    who="", method="TLS handshake", code="UNAUTHENTICATED", reason=reason, peer=where, calls=times
                )

    def caller(self, method: str, who: str, peer: str) -> None:
        """Somebody with a certificate of our authority called what is not for him."""
        for told, times in self._callers.take(f"{who} {method}", time.monotonic()):
            name, _, called = told.partition(" ")
            _log.warning("refused: %s called %s%s", name or "nobody known", called, _counted(times))
            if self._audit is not None:
                where = {"peer": peer} if times == 1 else {}
                self._audit.record(
                    who=name,
                    method=called.lstrip("/"),
                    code="PERMISSION_DENIED",
                    reason="NOT_A_MEMBER",
                    calls=times,
                    **where,
                )

    def close(self) -> None:
        """Writes what the audit log still holds; may take seconds."""
        if self._audit is not None:
            self._audit.close()


def _counted(times: int) -> str:
    return "" if times == 1 else f" ({times} times)"
