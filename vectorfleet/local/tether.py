"""Runs a program that dies with its parent: `python tether.py PARENT_PID NICENESS PROGRAM [ARGUMENT…]`.

Asks the kernel for SIGKILL on the parent's death, then becomes the program. Run as a file, not as a module, so that nothing of
vectorfleet is imported on the way. A wrapper and not a hook between fork and exec: that hook would run in a copy of a process
with gRPC's threads in it. What was acknowledged survives SIGKILL; nothing less is certain to end a process that hangs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_TRIES = 20
_PAUSE_S = 0.1


def main() -> None:
    """Never returns."""
    parent, niceness, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    os.nice(niceness)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before we asked
            sys.exit("the parent process is gone")
        if niceness:
            _yield_to_other_sessions(niceness)
    os.execvp(program[0], program)  # noqa: S606 (no shell is wanted)


def _yield_to_other_sessions(niceness: int) -> None:
    """Linux may share the CPU out among sessions first, and niceness then counts within one alone: each program has its own."""
    for _ in range(_TRIES):
        try:
            with open("/proc/self/autogroup", "w", encoding="ascii") as group:
                group.write(str(niceness))
        except BlockingIOError:  # the kernel takes ten a second, of the whole machine
            time.sleep(_PAUSE_S)
        except OSError:
            return  # this kernel does not
        else:
            return


if __name__ == "__main__":
    main()
