"""Scopes: which actions a caller may take on which collections. Pure.

Written `ACTION:NAMES`, as in `read:films`, `write:logs-*`, `admin:*`. The action is `read`, `write` or `admin`; the names are one
collection's, or a beginning with `*` behind it. An admin of a collection may read and write it as well; who may write may not
therefore read. `admin:*` is more than the sum of all collections: it alone reaches what concerns the cluster as a whole.

Nothing is taken away by a scope, so their order says nothing, and one that is not understood grants nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from vectorfleet import limits

_SCOPE: Final = re.compile(r"(read|write|admin):([A-Za-z0-9][A-Za-z0-9._-]*\*?|\*)", re.ASCII)
SCOPE_CHARS_MAX: Final = len("admin:") + limits.COLLECTION_NAME_CHARS_MAX + 1


class Action(StrEnum):
    """What is done to a collection."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class _Names:
    """A set of names of collections: some in full, some by how they begin."""

    whole: frozenset[str]
    beginnings: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.whole or name.startswith(self.beginnings)


@dataclass(frozen=True, slots=True)
class Scopes:
    """What one caller may do."""

    granted: frozenset[str]
    """The scopes as they were written."""
    _by_action: dict[Action, _Names]

    @classmethod
    def of(cls, scopes: Iterable[str]) -> Self:
        """Reads scopes; passes over what is none, such as those that a token carries for other services."""
        understood = frozenset(scope for scope in scopes if is_scope(scope))
        return cls(
            understood,
            {
                Action.READ: _names(understood, "read:", "admin:"),
                Action.WRITE: _names(understood, "write:", "admin:"),
                Action.ADMIN: _names(understood, "admin:"),
            },
        )

    def allow(self, action: Action, collection: str) -> bool:
        """Whether an action on a collection is granted, whether or not there is such a collection."""
        return collection in self._by_action[action]

    @property
    def whole_cluster(self) -> bool:
        """Whether this is an admin of everything."""
        return "admin:*" in self.granted


def is_scope(text: str) -> bool:
    """Whether a text is a scope."""
    return len(text) <= SCOPE_CHARS_MAX and _SCOPE.fullmatch(text) is not None


def _names(scopes: Iterable[str], *actions: str) -> _Names:
    names = {scope.removeprefix(action) for scope in scopes for action in actions if scope.startswith(action)}
    return _Names(
        frozenset(name for name in names if not name.endswith("*")),
        tuple(sorted(name[:-1] for name in names if name.endswith("*"))),
    )
