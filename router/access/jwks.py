"""The keys that verify tokens, from a file or from a URL, and how they stay new: nothing waits here for a network but who must.

A file is read again when it changes (a mounted ConfigMap changes in place). A URL is fetched every few minutes, and when a token
names a key that is not known, as it does after a rotation: then at most once in `REFETCH_PAUSE_S`, whoever asks how often, so
that made-up names make nobody's server work. A fetch has a time limit and a size limit, follows no redirection, and runs in a
thread. Where one fails, the last keys go on.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import logging
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

from router.access.jwt_tokens import KeySet, key_set

REFETCH_PAUSE_S: Final = 10.0
REFRESH_S: Final = 300.0
FILE_POLL_S: Final = 1.0
FETCH_TIMEOUT_S: Final = 5.0
FETCH_WAIT_S: Final = 3.0
"""A call whose key is unknown waits so long at most."""
JWKS_BYTES_MAX: Final = 1024 * 1024
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_log = logging.getLogger(__name__)


class Jwks:
    """A JWK set that is kept new. `keys` is read at any time; `run` keeps it so."""

    def __init__(self, source: Path | str) -> None:
        """Reads a file; of a URL it knows nothing yet.

        Args:
            source: a file, or an https URL (http on loopback alone).

        Raises:
            ValueError: the URL is not acceptable, or the file holds no JWK set.
            OSError: the file cannot be read.
        """
        self.keys: KeySet | None = None
        """None: nothing could be read yet. Another object whenever the set changes: what the old one verified it may not."""
        self._source = source
        self._digest = b""
        self._tried_s = -REFETCH_PAUSE_S
        self._fetching: asyncio.Task[None] | None = None
        if isinstance(source, str):
            _check_url(source)
        else:
            self._take(_read(source))

    async def run(self) -> None:
        """Keeps the keys new until it is cancelled."""
        try:
            while True:
                if self.keys is None or isinstance(self._source, Path) or self._since_try_s() >= REFRESH_S:
                    await self._refresh()
                await asyncio.sleep(FILE_POLL_S if isinstance(self._source, Path) else REFETCH_PAUSE_S)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()

    async def refetch(self) -> None:
        """Looks for new keys, for a token whose key is unknown; returns when there is nothing to wait for any more."""
        if self._fetching is None and self._since_try_s() < REFETCH_PAUSE_S:
            return
        await self._refresh()

    def _since_try_s(self) -> float:
        return time.monotonic() - self._tried_s

    async def _refresh(self) -> None:
        if self._fetching is None:
            self._tried_s = time.monotonic()
            self._fetching = asyncio.create_task(self._load(), name="fetching the JWK set")
        # Who waits may go away; the fetch is for all.
        await asyncio.wait([self._fetching], timeout=FETCH_WAIT_S)

    async def _load(self) -> None:
        try:
            reading = _fetch if isinstance(self._source, str) else _read
            self._take(await asyncio.to_thread(reading, self._source))  # type: ignore[arg-type]
        except (OSError, ValueError, http.client.HTTPException) as error:
            _log.warning("the JWK set cannot be read from %s, the last keys go on: %s", _shown(self._source), error)
        finally:
            self._fetching = None

    def _take(self, text: bytes) -> None:
        digest = hashlib.sha256(text).digest()
        if digest == self._digest:
            return
        self.keys = key_set(text)
        self._digest = digest
        _log.info("the JWK set of %s has %d keys of use", _shown(self._source), len(self.keys))


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """What answers for our keys is the address that the operator gave, and no other."""

    def redirect_request(self, *_: Any) -> None:
        """Follows none."""


def _fetch(url: str) -> bytes:
    with urllib.request.build_opener(_NoRedirection).open(url, timeout=FETCH_TIMEOUT_S) as response:
        until_s = time.monotonic() + FETCH_TIMEOUT_S
        text = b""
        while chunk := response.read1(65_536):  # a server that dribbles must not hold the thread for longer
            text += chunk
            if len(text) > JWKS_BYTES_MAX:
                raise ValueError(f"it is longer than {JWKS_BYTES_MAX} bytes")
            if time.monotonic() > until_s:
                raise TimeoutError(f"it took more than {FETCH_TIMEOUT_S:g} s")
        return text


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(JWKS_BYTES_MAX + 1)
    if len(text) > JWKS_BYTES_MAX:
        raise ValueError(f"{path} is longer than {JWKS_BYTES_MAX} bytes")
    return text


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError("--jwks-url must begin with https:// (http:// serves on loopback alone): whoever can change it on "
                         "its way could sign tokens")  # fmt: skip
    if parts.username or parts.password:
        raise ValueError("--jwks-url must carry no password: command lines can be read by others")


def _shown(source: Path | str) -> str:
    # A query may hold a secret.
    return source.partition("?")[0] if isinstance(source, str) else str(source)
