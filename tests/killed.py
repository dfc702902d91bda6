"""A folder as a killed process leaves it: copied while the process, or this one, has it open."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path


def copy_of_open(folder: Path, copy: Path) -> None:
    """Copies a data folder under its owner's hands; nothing may be written to it meanwhile.

    RocksDB removes files that it needs no more in the background: one that goes in the middle would not be missed.
    """

    def copy_if_there(source: str, target: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, target)

    shutil.copytree(folder, copy, copy_function=copy_if_there)
