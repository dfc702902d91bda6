"""Scopes by subject: for tokens whose issuer knows nothing of collections, such as those of Kubernetes' service accounts.

A TOML file, one line a subject:

    "system:serviceaccount:search:loader" = ["read:films", "write:films"]

What it grants comes to what the token itself allows. It is read again when it changes; where it cannot be read any more, the last
grants go on.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from router.access.scopes import is_scope

FILE_POLL_S: Final = 1.0

_log = logging.getLogger(__name__)


class Grants:
    """The grants of a file as they are now."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            ValueError: it is no TOML, or a line grants what is no scope.
            OSError: it cannot be read.
        """
        self._path = path
        self.by_subject: Mapping[str, tuple[str, ...]] = _read(path)
        """Another object whenever they change: what was remembered by the old ones holds no longer."""

    async def run(self) -> None:
        """Follows the file until it is cancelled."""
        failure = ""
        while True:
            await asyncio.sleep(FILE_POLL_S)
            try:
                found = _read(self._path)
            except (OSError, ValueError) as error:
                if str(error) != failure:
                    failure = str(error)
                    _log.warning("the last grants go on: %s", failure)
                continue
            failure = ""
            if found != self.by_subject:
                _log.info("%s grants scopes to %d subjects now", self._path, len(found))
                self.by_subject = found


def _read(path: Path) -> Mapping[str, tuple[str, ...]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    for subject, scopes in table.items():
        if not isinstance(scopes, list) or not all(isinstance(one, str) and is_scope(one) for one in scopes):
            raise ValueError(f'{path}: {subject!r} must have a list of scopes, such as ["read:films"]')
    return {subject: tuple(scopes) for subject, scopes in table.items()}
