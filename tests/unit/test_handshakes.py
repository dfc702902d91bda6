"""What gRPC's core says of handshakes on stderr is heard, and everything else that is written there arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vectorfleet.handshakes import failure

ROOT = Path(__file__).resolve().parents[2]
CORE = "I1123 18:10:23.551413   18289 ssl_transport_security.cc:2125] "
REFUSED = f"{CORE}Handshake failed with error SSL_ERROR_SSL: error:100000c0:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate verification context", "no certificate was shown"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "signed by no authority that we trust"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "the certificate has expired"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "the certificate is not valid yet"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "does not speak TLS"),
        ("SOMETHING_NEW: detail", "SOMETHING_NEW: detail"),
        ("SOMETHING_NEW", "SOMETHING_NEW"),
    ],
)
def test_reasons(told: str, why: str) -> None:
    assert why in (failure(f"{REFUSED}{told}\n".encode()) or "")


@pytest.mark.parametrize("line", [b"", b"\xff\n", b"WARNING router: a handshake\n", f"{CORE}Got goaway\n".encode()])
def test_other_lines(line: bytes) -> None:
    assert failure(line) is None


PROGRAM = f"""
import faulthandler, logging, os, signal, sys, time
faulthandler.enable()
from vectorfleet import handshakes
handshakes.watch(lambda why: print(why, flush=True))
logging.basicConfig(stream=sys.stderr)
logging.warning("from Python")
os.write(2, b"from a library\\n{CORE}Got goaway\\nE{CORE[1:]}an error\\n")
for _ in range(3):
    os.write(2, b"{REFUSED}PEER_DID_NOT_RETURN_A_CERTIFICATE: x\\n")
os.write(2, b"the end\\n")
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGABRT)
"""


def test_a_process_hears_of_them_and_loses_nothing_else() -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr is not None
    before = []
    for line in running.stderr:
        before.append(line)
        if line == "the end\n":
            break
    out, after = running.communicate("die\n", timeout=60)
    assert out.splitlines() == ["no certificate was shown"] * 3
    assert sorted(before) == sorted(
        ["WARNING:root:from Python\n", "from a library\n", f"E{CORE[1:]}an error\n", "the end\n"]
    )
    assert "Fatal Python error: Aborted" in after, "the last words of a crash"
