"""`vectorfleet.v1.ClusterService`: the shard map, what every node says about itself at this moment, and backups."""
# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import grpc

from router.backups import Backups
from router.budget import Budgets
from router.deadline import Deadline
from router.describing import Descriptions, describe, replica_on
from router.diagnostics import Diagnostics
from router.nodes import NodePool
from vectorfleet import errors, limits
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, ShardAssignment
from vectorfleet.v1 import cluster_service_pb2 as pb
from vectorfleet.v1 import cluster_service_pb2_grpc as pb_grpc

NAME: Final = pb.DESCRIPTOR.services_by_name["ClusterService"].full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ClusterService(pb_grpc.ClusterServiceServicer):
    """Shows the cluster, backs it up and restores it."""

    def __init__(
        self,
        coordinator: Coordinator,
        nodes: NodePool,
        backups: Backups,
        diagnostics: Diagnostics,
        budgets: Budgets,
    ) -> None:
        self._budgets = budgets
        self._coordinator = coordinator
        self._nodes = nodes
        self._backups = backups
        self._diagnostics = diagnostics

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> pb.GetClusterResponse:
        """Returns nodes, shards and replicas; a node that does not answer is shown as such."""
        deadline = Deadline.of_caller(context.time_remaining(), limits.CALL_TIMEOUT_DEFAULT_S)
        state = self._coordinator.state
        records = [state.collections[name] for name in sorted(state.collections)]
        holders = {node for record in records for shard in record.shards for node in shard.replicas}
        descriptions = await describe(self._nodes, state, holders | set(state.nodes), "", deadline)
        return pb.GetClusterResponse(
            epoch=state.epoch,
            controller=state.controller,
            coordinator_connected=self._coordinator.connected,
            nodes=[_node(node_id, state, descriptions) for node_id in descriptions],
            shards=[_shard(record, shard, descriptions) for record in records for shard in record.shards],
            router_used_bytes=self._budgets.used_bytes,
            router_limit_bytes=self._budgets.limit_bytes,
        )

    async def CreateBackup(
        self, request: pb.CreateBackupRequest, context: Context
    ) -> AsyncIterator[pb.CreateBackupResponse]:
        """Backs collections up, and tells how far it is."""
        deadline = Deadline.of_caller(context.time_remaining(), limits.BACKUP_TIMEOUT_DEFAULT_S)
        async for response in self._backups.create(request.destination, request.collections, deadline):
            yield response

    async def RestoreBackup(
        self, request: pb.RestoreBackupRequest, context: Context
    ) -> AsyncIterator[pb.RestoreBackupResponse]:
        """Restores collections, and tells how far it is."""
        deadline = Deadline.of_caller(context.time_remaining(), limits.BACKUP_TIMEOUT_DEFAULT_S)
        async for response in self._backups.restore(request.source, request.backup, request.collections, deadline):
            yield response

    async def SetDiagnostics(self, request: pb.SetDiagnosticsRequest, context: Context) -> pb.SetDiagnosticsResponse:
        """Changes what the processes log and trace."""
        deadline = Deadline.of_caller(context.time_remaining(), limits.CALL_TIMEOUT_DEFAULT_S)
        return pb.SetDiagnosticsResponse(processes=await self._diagnostics.change(request.settings, deadline))

    async def GetDiagnostics(self, request: pb.GetDiagnosticsRequest, context: Context) -> pb.GetDiagnosticsResponse:
        """Returns what one process tells of itself."""
        deadline = Deadline.of_caller(context.time_remaining(), limits.CALL_TIMEOUT_DEFAULT_S)
        return await self._diagnostics.told(request.node, deadline)


def _node(node_id: str, state: ClusterState, descriptions: Descriptions) -> pb.Node:
    said = descriptions[node_id]
    registered = state.nodes.get(node_id)
    node = pb.Node()
    if not isinstance(said, errors.VectorfleetError):
        node.CopyFrom(said.node)
    node.id = node_id
    node.live = registered is not None and not isinstance(said, errors.VectorfleetError)
    if registered is not None:
        node.address = registered.address
        node.version = node.version or registered.version
    return node


def _shard(record: CollectionRecord, shard: ShardAssignment, descriptions: Descriptions) -> pb.ShardState:
    return pb.ShardState(
        collection=record.name,
        shard=shard.shard,
        hash_first=shard.hash_first,
        hash_last=shard.hash_last,
        term=shard.term,
        replicas=[_replica(record, shard, node_id, descriptions) for node_id in shard.replicas],
    )


def _replica(
    record: CollectionRecord, shard: ShardAssignment, node_id: str, descriptions: Descriptions
) -> pb.ReplicaState:
    replica = pb.ReplicaState()
    said = descriptions.get(node_id)
    described = replica_on(descriptions, node_id, record.uid, shard.shard)
    if described is not None:
        replica.CopyFrom(described.state)
    elif isinstance(said, errors.VectorfleetError):
        replica.status = pb.REPLICA_STATUS_UNREACHABLE
        replica.message = said.message
    else:
        replica.status = pb.REPLICA_STATUS_LOADING
        replica.message = "the node has not opened it yet"
    replica.node = node_id
    replica.primary = node_id == shard.primary
    return replica
