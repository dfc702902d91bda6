"""What a client shows a router to be let in: an API key or a token, as metadata of each call.

A key or token is a text; a file, read again when it changes (Kubernetes replaces projected tokens in place); or a
function, asked before each call. None of them ends up in a repr or in an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from vectorfleet._arguments import refuse

Secret: TypeAlias = str | os.PathLike[str] | Callable[[], str]
Metadata: TypeAlias = tuple[tuple[str, str], ...]

CHARS_MAX: Final = 8 * 1024
"""gRPC's servers take little more than this as all metadata of a call."""


class Credentials:
    """An API key or a token, wherever it comes from."""

    def __init__(self, api_key: Secret | None = None, token: Secret | None = None) -> None:
        """Reads it, so that what is wrong with it shows at once.

        Args:
            api_key: `vfk_…`, or the admin key; a text, a path or a function.
            token: a JSON Web Token; likewise.

        Raises:
            InvalidRequest: both are given, the file cannot be read, or this is no credential.
        """
        if api_key is not None and token is not None:
            refuse("token", "an api_key and a token exclude each other: a caller is one or the other")
        self._field = "token" if api_key is None else "api_key"
        self._source = token if api_key is None else api_key
        self._stamp: tuple[int, int, int] | None = None
        self._text = ""
        self._metadata: Metadata | None = None
        self._refresh: Callable[[], None] | None = None
        """Asked before each call; None: the credential is a text, or there is none."""
        if isinstance(self._source, str):
            self._take(self._source)
        elif isinstance(self._source, os.PathLike):
            self._refresh = partial(self._read, Path(self._source))
            self._refresh()
        elif callable(self._source):
            self._refresh = partial(self._ask, self._source)

    def __repr__(self) -> str:
        return f"<Credentials: {'none' if self._source is None else self._field}>"

    def __bool__(self) -> bool:
        return self._source is not None

    def metadata(self) -> Metadata | None:
        """The metadata of the next call; None: there is no credential.

        Raises:
            InvalidRequest: the function returned something that is no credential.
        """
        if self._refresh is not None:
            self._refresh()
        return self._metadata

    def _ask(self, source: Callable[[], str]) -> None:
        self._take(source())

    def _read(self, path: Path) -> None:
        try:
            found = path.stat()
            stamp = found.st_mtime_ns, found.st_ino, found.st_size
            if stamp != self._stamp:
                self._take(path.read_text(encoding="ascii").strip())
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            if self._metadata is None:
                why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
                refuse(self._field, f"{path} cannot be read: {why}")
            # It is being replaced: the last one may hold on.

    def _take(self, text: str) -> None:
        if text == self._text and self._metadata is not None:
            return
        if not isinstance(text, str) or not 1 <= len(text) <= CHARS_MAX or not _sendable(text):
            refuse(
                self._field,
                f"this is no credential: one is 1 to {CHARS_MAX} printable ASCII characters without spaces",
            )
        self._text, self._metadata = text, (("authorization", f"Bearer {text}"),)


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
