"""A folder as a killed process leaves it: copied while the process, or this one, has it open."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def copy_of_open(folder: Path, copy: Path) -> None:
    """Copies a data folder under its owner's hands; nothing may be written to it meanwhile.

    RocksDB merges and removes files in the background: where one came, went or grew in the middle, it is copied anew.
    """

    def copy_if_there(source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, target)

    while True:
        before = _files(folder)
        shutil.copytree(folder, copy, copy_function=copy_if_there)
        if before == _files(folder) == _files(copy):
            return
        shutil.rmtree(copy)


def _files(folder: Path) -> dict[Path, int]:
    """Their sizes."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found[path.relative_to(folder)] = path.stat().st_size
    return found
