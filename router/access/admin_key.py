"""The admin key: a secret that the operator gives to the routers, by which the first API keys are made.

It comes from a file (a Kubernetes Secret, say), which is read again when it changes, or from the environment. Only its hash is
kept. Where the file cannot be read any more, the last key goes on: a file that is being replaced locks nobody out.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from vectorfleet.cluster.key_record import digest_of

CHARS_MIN: Final = 32
CHARS_MAX: Final = 1024
FILE_POLL_S: Final = 1.0

_log = logging.getLogger(__name__)


class AdminKey:
    """The hash of the admin key as it is now."""

    def __init__(self, source: Path | str) -> None:
        """Reads the key.

        Args:
            source: a file, or the key itself.

        Raises:
            ValueError: this is no key that could protect anything.
            OSError: the file cannot be read.
        """
        self._path = source if isinstance(source, Path) else None
        self.digest: str = _digest_in(source)

    async def run(self) -> None:
        """Follows the file until it is cancelled."""
        failure = ""
        while self._path is not None:
            await asyncio.sleep(FILE_POLL_S)
            try:
                digest = _digest_in(self._path)
            except (OSError, ValueError) as error:
                if str(error) != failure:
                    failure = str(error)
                    _log.warning("the last admin key goes on: %s", failure)
                continue
            failure = ""
            if digest != self.digest:
                _log.info("the admin key is another one now")
                self.digest = digest


def _digest_in(source: Path | str) -> str:
    where = str(source) if isinstance(source, Path) else "VECTORFLEET_ADMIN_KEY"
    try:
        text = source.read_text(encoding="ascii") if isinstance(source, Path) else source
    except UnicodeDecodeError:
        raise ValueError(f"{where} holds no key: it is not ASCII") from None  # the error itself would show its bytes
    key = text.strip()
    if not CHARS_MIN <= len(key) <= CHARS_MAX or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{where} holds no key: one is {CHARS_MIN} to {CHARS_MAX} printable characters without spaces, and random, "
            "such as `openssl rand -hex 32` prints"
        )
    return digest_of(key)
