"""TLS handshakes that fail, made known to Python.

A stranger without a certificate that we trust is refused by gRPC's core, before any code of ours runs, and the core says so on
the process's stderr alone. `watch` puts a pipe there, tells what it recognises, passes on errors and whatever is not the core's,
and drops the rest of the core's chatter. What the core does not say, nobody can know here: the stranger's address.

The core must have been told to speak before grpc was imported: `GRPC_VERBOSITY=INFO`. It says the same of handshakes in which
this process is the client; which of the two it was it does not say. Python's own stderr and the fault handler's
go past the pipe, so that the last words of a process that crashes are not lost in it.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Final

_PIPE_BYTES: Final = 1 << 20
_CORE: Final = re.compile(rb"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+\s+\d+ \S+:\d+\] ")
_FAILED: Final = re.compile(
    rb"Handshake failed with error \w+: error:\w+:[^:]*:[^:]*:(?P<name>\w+)(?:: (?P<detail>.*))?"
)
_MEANINGS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side does not speak TLS",
    "unable to get local issuer certificate": "the certificate is signed by no authority that we trust",
    "self signed certificate": "the certificate is signed by no authority that we trust",
    "certificate has expired": "the certificate has expired",
    "certificate is not yet valid": "the certificate is not valid yet",
}


def failure(line: bytes) -> str | None:
    """What a line of the core's says of a handshake that failed; None where it is about something else."""
    found = _FAILED.search(line)
    if found is None:
        return None
    name, detail = found["name"].decode(), (found["detail"] or b"").decode(errors="replace").strip()
    meaning = _MEANINGS.get(detail) or _MEANINGS.get(name)
    return meaning or f"{name}: {detail}".rstrip(": ")


def watch(failed: Callable[[str], None]) -> None:
    """Begins to watch stderr, for the life of the process; `failed` is told why a handshake failed, on a thread of its own."""
    stderr = os.dup(sys.stderr.fileno())
    sys.stderr = os.fdopen(stderr, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)
    reading, writing = os.pipe()
    # Who writes while holding the interpreter's lock must not wait for our thread, which needs it: lines are lost instead.
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.set_blocking(writing, False)
    os.dup2(writing, 2)
    os.close(writing)

    def follow() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                why = failure(line)
                if why is not None:
                    failed(why)
                elif not _CORE.match(line) or line[:1] in b"EF":
                    os.write(stderr, line)

    threading.Thread(target=follow, name="handshakes", daemon=True).start()
