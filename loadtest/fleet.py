"""The cluster that demonstration and measurements drive: the same processes as `vectorfleet up`, on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from vectorfleet.local import LocalCluster

NODES = 2


def local_cluster(data: Path, *, secure: bool = False) -> LocalCluster:
    """Makes a cluster of two shard servers and a router that embeds with all cores, as `up` or `up --secure` does.

    A router leaves half of the cores to others unless told otherwise; while texts are loaded here, nobody else wants them.
    """
    cores = len(os.sched_getaffinity(0))
    return LocalCluster(data, nodes=NODES, router_args=("--embed-threads", str(cores)), secure=secure)
