"""Finds out whether this machine has what a local cluster needs, before anything is started, and says how to get it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from vectorfleet.local.failure import LocalClusterError

SERVERS: Final = ("router", "shard_server")
_NEEDED: Final = {
    "faiss": "faiss-cpu",
    "rocksdict": "rocksdict",
    "xxhash": "xxhash",
    "psutil": "psutil",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
}


def servers_root() -> Path:
    """Returns the folder that holds the servers' packages.

    Raises:
        LocalClusterError: they, or what they need, are not installed.
    """
    found = [importlib.util.find_spec(name) for name in SERVERS]
    roots = [Path(spec.origin).parents[1] for spec in found if spec is not None and spec.origin]
    if len(roots) < len(SERVERS):
        raise LocalClusterError(
            "the servers are not installed: the vectorfleet wheel holds the client and the command line alone. "
            "Clone the repository and run `make setup` there, then `make up`"
        )
    absent = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise LocalClusterError(f"a local cluster needs {', '.join(absent)}: pip install 'vectorfleet[local]'")
    return roots[0]
