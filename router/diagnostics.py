"""What this router and the nodes tell of themselves, and changing what they log and trace: asked of all at once."""

from __future__ import annotations

import asyncio
from typing import Final

from router.deadline import Deadline
from router.nodes import NodePool
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.errors import Unavailable, VectorfleetError
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.telemetry import diagnostics
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.v1 import cluster_service_pb2 as pb

NODE_TIMEOUT_S: Final = 3.0


class Diagnostics:
    """The fan-out of diagnostics."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool, telemetry: Telemetry, router_id: str) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._telemetry = telemetry
        self._router_id = router_id

    async def change(self, settings: pb.DiagnosticSettings, deadline: Deadline) -> list[pb.ProcessDiagnostics]:
        """Changes this router and all nodes; a node that does not answer is told of. Raises `InvalidRequest`."""
        mine = pb.ProcessDiagnostics(process=self._router_id, settings=diagnostics.change(self._telemetry, settings))
        request = shard_service_pb2.TuneRequest(settings=settings)
        patience = Deadline(deadline.answer_by_s()).within(NODE_TIMEOUT_S)

        async def ask(node_id: str) -> pb.ProcessDiagnostics:
            node = self._nodes.find(node_id, self._coordinator.state)
            try:
                if node is None:
                    raise Unavailable("no address of it is known")
                response = await node.call(node.stub.Tune(request, timeout=patience.remaining_s()))
            except VectorfleetError as error:
                return pb.ProcessDiagnostics(process=node_id, error=str(error))
            return pb.ProcessDiagnostics(process=node_id, settings=response.settings)

        return [mine, *await asyncio.gather(*map(ask, self._node_ids()))]

    async def told(self, node_id: str, deadline: Deadline) -> pb.GetDiagnosticsResponse:
        """What one process tells; "": this router. Raises `Unavailable`."""
        if not node_id:
            mine = await diagnostics.told_by(self._telemetry, self._router_id)
            return pb.GetDiagnosticsResponse(process=mine, nodes=self._node_ids())
        node = self._nodes.find(node_id, self._coordinator.state) if node_id in self._node_ids() else None
        if node is None:
            raise Unavailable(f"there is no node {node_id!r}, or no address of it is known")
        patience = Deadline(deadline.answer_by_s()).within(NODE_TIMEOUT_S)
        try:
            request = shard_service_pb2.DiagnoseRequest()
            response = await node.call(node.stub.Diagnose(request, timeout=patience.remaining_s()))
        except VectorfleetError as error:
            raise Unavailable(f"node {node_id} does not answer: {error.message}") from error
        return pb.GetDiagnosticsResponse(process=response.process)

    def _node_ids(self) -> list[str]:
        state = self._coordinator.state
        named = {node for record in state.collections.values() for shard in record.shards for node in shard.replicas}
        return sorted(named | set(state.nodes))
