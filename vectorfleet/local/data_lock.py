"""A lock on a cluster's data folder: two clusters on the same data would ruin each other's.

The kernel holds it for this process and lets go when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vectorfleet.local.failure import LocalClusterError


class DataLock:
    """Held between `acquire` and `release`."""

    def __init__(self, data: Path) -> None:
        self._path = data / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            LocalClusterError: another process has it, or the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise LocalClusterError(f"the data folder {self._path.parent} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise LocalClusterError(
                f"another cluster runs on {self._path.parent} (process {owner or 'unknown'}): stop it, or take another folder"
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
