"""Builds the library that makes file operations fail (failing_files.c); every test that preloads it builds its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("failing_files.c")


def built_in(folder: Path) -> Path:
    """Compiles it into `folder`; returns the library's path, for LD_PRELOAD."""
    library = folder / "failing_files.so"
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return library
