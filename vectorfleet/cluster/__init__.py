"""Who is there and who owns what: placement, the shard map, and the coordinator that keeps it (etcd)."""
