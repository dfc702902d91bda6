"""Where backups may lie: a directory or a URL, in one spelling, and below one of the roots that this node was started with.

Whoever reaches a router can ask for a backup, so the roots are what keeps it from writing anywhere else. Invariant: what
`Roots.admit` returns has no `..`, no link and no second protocol in it that could lead out of its root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from vectorfleet.cluster.backup_place import is_url, spelt
from vectorfleet.errors import FailedPrecondition, InvalidRequest


def normalised(place: str) -> str:
    """The one spelling of a place: a directory without links, or `scheme://bucket/folder`. Raises `InvalidRequest`."""
    one = spelt(place, "destination")
    return one if is_url(one) else os.path.realpath(one)


class Roots:
    """The places below which this node writes and reads backups."""

    def __init__(self, roots: Iterable[str]) -> None:
        """Takes what the command line named. Raises `ValueError` where one is no place."""
        try:
            self._roots = tuple(normalised(root) for root in roots)
        except InvalidRequest as error:
            raise ValueError(f"--backup-root: {error.message}") from error

    def admit(self, place: str, node_id: str) -> str:
        """The place in its one spelling.

        Raises:
            InvalidRequest: it is no place.
            FailedPrecondition: DESTINATION_REFUSED, it is below none of the roots.
        """
        spelt = normalised(place)
        if any(spelt == root or spelt.startswith(root.rstrip("/") + "/") for root in self._roots):
            return spelt
        having = f"has {', '.join(self._roots)}" if self._roots else "has none"
        raise FailedPrecondition(
            f"node {node_id} keeps backups below its --backup-root alone, and {having}: not in {spelt}",
            reason="DESTINATION_REFUSED",
        )
