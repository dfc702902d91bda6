"""Who calls: what a verified credential says of its holder, and the caller of the request at hand."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from router.access.scopes import Scopes
from vectorfleet.cluster.key_record import NO_LIMITS, Limits


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a verified credential."""

    name: str
    """For the audit log and for limits: `key:ID`, `jwt:SUBJECT`, `admin-key`; "": anybody, where nobody is asked who he is."""
    scopes: Scopes
    limits: Limits = NO_LIMITS


ANYBODY: Final = Principal("", Scopes.of(["admin:*"]))
"""The caller where authentication is off."""

caller: ContextVar[Principal] = ContextVar("caller", default=ANYBODY)
"""Of the request at hand: set at the door, read by the few services whose answers depend on who asks."""
