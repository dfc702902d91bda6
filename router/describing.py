"""How nodes and replicas stand: asked of several nodes at once, each with a short time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, TypeAlias

from router.deadline import Deadline
from router.nodes import NodePool
from vectorfleet import errors
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.v1 import cluster_service_pb2, types_pb2

NODE_TIMEOUT_S: Final = 2.0
"""Where nodes are only shown: one that does not answer within it is shown as such."""

_FULL: Final = frozenset({"DISK_FULL", "MEMORY_FULL"})

Descriptions: TypeAlias = dict[str, shard_service_pb2.DescribeResponse | errors.VectorfleetError]
"""Node id → what it said, or why it said nothing."""


async def describe(
    nodes: NodePool,
    state: ClusterState,
    node_ids: Iterable[str],
    uid: str,
    deadline: Deadline,
    *,
    patience_s: float = NODE_TIMEOUT_S,
) -> Descriptions:
    """Asks nodes how their replicas stand; raises nothing but cancellation.

    Args:
        nodes: the ways to them.
        state: where they are.
        node_ids: whom to ask.
        uid: only of this collection's replicas; "": all.
        deadline: the caller's.
        patience_s: each node has at most this much of it.
    """
    patience = Deadline(deadline.answer_by_s()).within(patience_s)

    async def ask(node_id: str) -> shard_service_pb2.DescribeResponse | errors.VectorfleetError:
        node = nodes.find(node_id, state)
        if node is None:
            return errors.Unavailable(f"no address of node {node_id} is known")
        request = shard_service_pb2.DescribeRequest(collection_uid=uid)
        try:
            return await node.call(node.stub.Describe(request, timeout=patience.remaining_s()))
        except errors.VectorfleetError as error:
            return error

    asked = sorted(set(node_ids))
    return dict(zip(asked, await asyncio.gather(*(ask(node_id) for node_id in asked)), strict=True))


async def describe_collection(
    nodes: NodePool,
    state: ClusterState,
    record: CollectionRecord,
    deadline: Deadline,
    *,
    patience_s: float = NODE_TIMEOUT_S,
) -> Descriptions:
    """Asks every node that holds a replica of the collection; arguments as in `describe`."""
    holders = {node for shard in record.shards for node in (*shard.replicas, shard.primary) if node}
    return await describe(nodes, state, holders, record.uid, deadline, patience_s=patience_s)


def replica_on(
    descriptions: Descriptions, node_id: str, uid: str, shard: int
) -> shard_service_pb2.ReplicaDescription | None:
    """What a node said about one replica; None: nothing."""
    response = descriptions.get(node_id)
    if not isinstance(response, shard_service_pb2.DescribeResponse):
        return None
    return next((r for r in response.replicas if r.collection_uid == uid and r.shard == shard), None)


def why_not_serving(
    descriptions: Descriptions, record: CollectionRecord, shard: ShardAssignment
) -> errors.VectorfleetError | None:
    """Why a shard's primary cannot be counted on, from what its node said; None: it serves."""
    if not shard.primary:
        return errors.Unavailable(f"shard {shard.shard} of {record.name} is not assigned to a node yet")
    place = f"shard {shard.shard} of {record.name} on node {shard.primary}"
    response = descriptions.get(shard.primary)
    if isinstance(response, errors.VectorfleetError):
        reason = "DEADLINE_EXCEEDED" if response.reason == "DEADLINE_EXCEEDED" else "SHARD_UNAVAILABLE"
        return errors.error_for(reason, f"{place} does not answer: {response.message}")
    replica = replica_on(descriptions, shard.primary, record.uid, shard.shard)
    if replica is None:
        return errors.Unavailable(f"{place} is not opened yet")
    if replica.state.status == cluster_service_pb2.REPLICA_STATUS_FAILED:
        # What is full may have room later; anything else stays as it is.
        reason = replica.failure_reason if replica.failure_reason in _FULL else "DATA_LOSS"
        return errors.error_for(reason, f"{place} is out of service: {replica.state.message}")
    if replica.state.status != cluster_service_pb2.REPLICA_STATUS_SERVING:
        return errors.Unavailable(f"{place} is loading")
    return None


def missing(shard: int, error: errors.VectorfleetError) -> types_pb2.MissingShard:
    """The coverage entry of a shard that said nothing."""
    return types_pb2.MissingShard(shard=shard, reason=error.reason, message=error.message)
