"""How many files, and so connections, this process may open: raised as far as the system lets it, then shared out.

A server that meets the limit fails in odd places: a segment that cannot be mapped, an etcd connection that cannot be made.
So connections are refused long before, and what is left is for files.
"""

from __future__ import annotations

import resource

from vectorfleet import limits


def raise_limit() -> int:
    """Raises the soft limit (`ulimit -n`) to the hard one; returns it. Call once, at the start of a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_max() -> int:
    """How many connections a server of this process may hold: half of its files, at most `limits.CONNECTIONS_MAX`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limits.CONNECTIONS_MAX, soft // 2)
