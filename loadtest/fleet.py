"""The cluster that demonstration and measurements drive: the same processes as `vectorfleet up`, on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vectorfleet.local import LocalCluster

NODES = 2


def local_cluster(
    data: Path, *, secure: bool = False, routers: int = 1, shard_args: Sequence[str] = ()
) -> LocalCluster:
    """Makes a cluster of two shard servers and a router that embeds with all cores, as `up` or `up --secure` does.

    Several routers share one port. A router leaves half of the cores to others unless told otherwise; while texts are loaded
    here, nobody else wants them. Shard servers get `shard_args` beside their defaults.
    """
    cores = len(os.sched_getaffinity(0))
    return LocalCluster(
        data,
        nodes=NODES,
        routers=routers,
        one_port=routers > 1,
        router_args=("--embed-threads", str(cores)),
        shard_args=shard_args,
        secure=secure,
    )
