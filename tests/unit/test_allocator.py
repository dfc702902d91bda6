"""The allocator's settings, in a process of its own: they hold for a whole process and cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vectorfleet import allocator

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import threading, sys
import numpy as np
from vectorfleet import allocator

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

if sys.argv[1] == "set":
    assert allocator.give_memory_back({})
def work():
    # The pattern that glibc keeps: large blocks are freed below small ones that stay.
    kept = []
    for _ in range(20):
        large = [np.ones(1_000_000, np.float32) for _ in range(10)]
        kept.append(np.ones(100))
        del large
    stay.extend(kept)
stay = []
before = resident()
for _ in range(4):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")
def test_freed_arrays_do_not_stay_resident() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "set"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 8 * 1024, "kibibytes that stay of 40 MiB that were freed"


def test_the_operators_own_settings_stand() -> None:
    assert not allocator.give_memory_back({"MALLOC_ARENA_MAX": "8"})
