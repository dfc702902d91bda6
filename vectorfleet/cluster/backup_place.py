"""How the place of backups is written: an absolute directory, or a URL such as `s3://bucket/folder`. Pure.

Routers check it before they ask nodes, nodes check it again: a directory's links are theirs to resolve, and so is whether
they may go there.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

from vectorfleet.errors import InvalidRequest

PLACE_CHARS_MAX: Final = 1024
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_DIRECTORY_SCHEMES: Final = frozenset({"file", "local"})
# fsspec chains protocols with "::", some stores read "?versionId=", and listings know wildcards.
_MARKS: Final = ("::", "?", "#", "\\", "*", "[")


def is_url(place: str) -> bool:
    """Whether a place that `spelt` returned is a URL; else it is a directory."""
    return _URL.fullmatch(place) is not None


def spelt(place: str, field: str) -> str:
    """A place in one spelling.

    Args:
        place: as somebody wrote it.
        field: of the request, for the error.

    Raises:
        InvalidRequest: it is neither an absolute directory nor a URL.
    """
    if not place or len(place) > PLACE_CHARS_MAX or not place.isprintable():
        raise InvalidRequest(f"a backup's place is 1 to {PLACE_CHARS_MAX} printable characters", field=field)
    found = _URL.fullmatch(place)
    if found is not None and found[1].lower() not in _DIRECTORY_SCHEMES:
        return _url(place, found[1].lower(), found[2], field)
    path = place if found is None else found[2]
    if not path.startswith("/"):
        raise InvalidRequest(f"{place!r} is neither an absolute path nor a URL such as s3://bucket/folder", field=field)
    whole = "/" + path.strip("/")
    # What ".." leads to depends on the links of the machine that resolves it.
    return whole if ".." in whole.split("/") else posixpath.normpath(whole)


def _url(place: str, scheme: str, rest: str, field: str) -> str:
    parts = rest.rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or any(mark in rest for mark in _MARKS):
        raise InvalidRequest(
            f"{place!r} must be scheme://bucket/folder, without empty parts, dots, queries or wildcards", field=field
        )
    return f"{scheme}://{'/'.join(parts)}"
