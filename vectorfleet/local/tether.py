"""Runs a program that dies with its parent: `python tether.py PARENT_PID PROGRAM [ARGUMENT…]`.

Asks the kernel for SIGKILL on the parent's death, then becomes the program. Run as a file, not as a module, so that nothing of
vectorfleet is imported on the way. A wrapper and not a hook between fork and exec: that hook would run in a copy of a process
with gRPC's threads in it. What was acknowledged survives SIGKILL; nothing less is certain to end a process that hangs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before we asked
            sys.exit("the parent process is gone")
    os.execvp(program[0], program)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
