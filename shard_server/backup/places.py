"""Where backups may lie: a directory or a URL, in one spelling, and below one of the roots that this node was started with.

Whoever reaches a router can ask for a backup, so the roots are what keeps it from writing anywhere else. Invariant: what
`Roots.admit` returns has no `..`, no link and no second protocol in it that could lead out of its root.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from vectorfleet.errors import FailedPrecondition, InvalidRequest

PLACE_CHARS_MAX: Final = 1024
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_DIRECTORY_SCHEMES: Final = frozenset({"file", "local"})


def is_url(place: str) -> bool:
    """Whether a normalised place is a URL; else it is a directory."""
    return _URL.fullmatch(place) is not None


def normalised(place: str) -> str:
    """The one spelling of a place: an absolute directory without links, or `scheme://bucket/folder`.

    Raises:
        InvalidRequest: it is neither.
    """
    if not place or len(place) > PLACE_CHARS_MAX or not place.isprintable():
        raise InvalidRequest(f"a backup's place is 1 to {PLACE_CHARS_MAX} printable characters", field="destination")
    found = _URL.fullmatch(place)
    if found is not None and found[1].lower() not in _DIRECTORY_SCHEMES:
        return _url(place, found[1].lower(), found[2])
    path = place if found is None else found[2]
    if not os.path.isabs(path):
        raise InvalidRequest(
            f"{place!r} is neither an absolute path nor a URL such as s3://bucket/folder", field="destination"
        )
    return os.path.realpath(path)


def _url(place: str, scheme: str, rest: str) -> str:
    parts = rest.rstrip("/").split("/")
    # fsspec chains protocols with "::", and some stores read "?versionId=": neither has a place in a destination.
    if any(part in ("", ".", "..") for part in parts) or any(mark in rest for mark in ("::", "?", "#", "\\", "*", "[")):
        raise InvalidRequest(
            f"{place!r} must be scheme://bucket/folder, without empty parts, dots, queries or wildcards",
            field="destination",
        )
    return f"{scheme}://{'/'.join(parts)}"


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
