"""Ports of our own choosing, for processes that must be found again on the same port after they were away.

They are taken from below the kernel's range for outgoing connections: within it, any connection of anybody could take the port
while its owner restarts; a client that keeps trying to reconnect to it can even end up connected to itself. A port found free may
still be gone a moment later, so whoever uses one must be ready to take another.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path
from typing import Final

from vectorfleet.local.failure import LocalClusterError

_RANGE_FILE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_OUTGOING_DEFAULT: Final = 32_768
_WIDTH: Final = 12_000
_LOWEST: Final = 1_024
_TRIES: Final = 200


def bind_failure(host: str, port: int) -> OSError | None:
    """Why a server could not listen there now; None: it could. Port 0 asks for the host alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        # As servers do: connections of an earlier process that are still being closed do not count.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host.strip("[]"), port))
            one.listen(1)
        except OSError as error:
            return error
        except UnicodeError as error:  # no name of a host at all
            return OSError(errno.EADDRNOTAVAIL, str(error))
    return None


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    return bind_failure(host, port) is None


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Finds ports that are free now, all different.

    Raises:
        LocalClusterError: there are none.
    """
    # Not the random numbers that a test may have seeded: processes beside us would draw the same ports.
    draw = random.SystemRandom()
    last = _first_outgoing() - 1
    first = max(_LOWEST, last - _WIDTH)
    found: list[int] = []
    for _ in range(_TRIES):
        port = draw.randint(first, last)
        if port not in found and is_free(host, port):
            found.append(port)
            if len(found) == count:
                return found
    raise LocalClusterError(f"no free ports on {host} between {first} and {last}")


def _first_outgoing() -> int:
    try:
        first = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _FIRST_OUTGOING_DEFAULT
    return first if first > 2 * _LOWEST else _FIRST_OUTGOING_DEFAULT
