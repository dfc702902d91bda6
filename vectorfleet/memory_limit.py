"""How much memory this process may use: what it was told, else what its container or machine has.

A ceiling on what is admitted lies below it (`limits.MEMORY_SHARE`): the allocator's gaps, Python and gRPC are not predicted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from vectorfleet import limits

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def memory_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """The least of the machine's memory and the limits of this process's control groups (versions 1 and 2)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(cgroups, own)])


def admitted_bytes(told_bytes: int = 0) -> int:
    """The ceiling on what is admitted.

    Args:
        told_bytes: what the process may use; 0: all of `memory_bytes`.
    """
    return int((told_bytes or memory_bytes()) * limits.MEMORY_SHARE)


def _group_limits(cgroups: Path, own: Path) -> list[int]:
    found = []
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        root = cgroups / "memory" if "memory" in controllers.split(",") else cgroups
        name = "memory.limit_in_bytes" if root != cgroups else "memory.max"
        group = root / path.strip("/")
        # Within a container the path may be that of the host, which is not there: its own group is the root then.
        for folder in {root, group, *(parent for parent in group.parents if root in parent.parents)}:
            found += [int(text) for text in _lines(folder / name) if text.isdecimal()]
    return [size for size in found if size > 0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
