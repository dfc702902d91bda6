"""How much room a folder's disk has: asked before work is admitted, so that RocksDB hardly ever meets a full disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from vectorfleet.errors import ResourceExhausted

_PROBE: Final = ".room"


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written, as the file system sees it; a quota may allow fewer."""
    return shutil.disk_usage(folder).free


def require_free(folder: Path, floor: int) -> None:
    """Raises `ResourceExhausted` (DISK_FULL) where fewer than `floor` bytes are free."""
    free = free_bytes(folder)
    if free < floor:
        raise ResourceExhausted(
            f"the node's disk is full: {free} bytes are free at {folder}, and {floor} are kept in reserve; deletes are"
            " still taken",
            reason="DISK_FULL",
        )


def probe(folder: Path, size: int) -> None:
    """Takes `size` bytes and gives them back. Raises `OSError` where the disk is full, read-only or broken."""
    path = folder / _PROBE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        path.unlink(missing_ok=True)
