"""What processes take of the machine: CPU time, and memory counted so that the shares of several add up."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it, those that live."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Resident memory; a page that several share is shared out among them (Linux's PSS), as PostgreSQL's buffers are."""
    found = 0
    for process in processes:
        try:
            found += int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
    return found
