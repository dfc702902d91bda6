"""A whole cluster on one machine: a real etcd, shard servers and routers as child processes, for `vectorfleet up` and tests."""

from vectorfleet.local.cluster import LocalCluster
from vectorfleet.local.failure import LocalClusterError

__all__ = ["LocalCluster", "LocalClusterError"]
