"""One node of the fleet: hosts replicas of shards, and writes, searches and trains on them. `python -m shard_server`."""
