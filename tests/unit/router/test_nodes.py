"""The pool of channels: kept while a node is known, dialled anew when a node that was out of reach registers again."""

from __future__ import annotations

import grpc
import pytest

from router.nodes import NodePool
from vectorfleet import errors
from vectorfleet.cluster.shard_map import ClusterState, CollectionRecord, NodeInfo, ShardAssignment
from vectorfleet.internal.v1 import shard_service_pb2
from vectorfleet.v1 import types_pb2

RECORD = CollectionRecord(
    name="c",
    uid="u",
    dim=1,
    metric=types_pb2.METRIC_L2,
    shards=(ShardAssignment(0, 0, 2**64 - 1, primary="n", replicas=("n",), in_sync=("n",), term=1),),
)


def state(address: str = "") -> ClusterState:
    """A cluster in which node n holds the only shard; it is registered at the address, or not."""
    return ClusterState(nodes={"n": NodeInfo("n", address)} if address else {}, collections={"c": RECORD})


async def test_a_node_that_registers_again_is_dialled_anew_where_it_was_out_of_reach() -> None:
    pool, address = NodePool(), "127.0.0.1:1"
    await pool.retain(state(address))
    first = pool.at(address)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await first.stub.Describe(shard_service_pb2.DescribeRequest())
    await pool.retain(state(address))
    assert pool.at(address) is first
    await pool.retain(state())
    assert pool.find("n", state()) is first, "one that lost etcd alone still serves"
    await pool.retain(state(address))
    assert pool.at(address) is not first
    await pool.close()


async def test_a_connection_that_works_is_kept_when_the_node_registers_again() -> None:
    server = grpc.aio.server()
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    pool = NodePool()
    await pool.retain(state(address))
    first = pool.at(address)
    await first.channel.channel_ready()
    await pool.retain(state())
    await pool.retain(state(address))
    assert pool.at(address) is first
    await pool.close()
    await server.stop(None)


async def test_a_node_that_lets_go_of_a_call_is_out_of_reach() -> None:
    async def let_go() -> None:
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, nothing, nothing, "the other side let go of it")

    pool = NodePool()
    with pytest.raises(errors.Unavailable) as caught:
        await pool.at("127.0.0.1:1").call(let_go())
    assert caught.value.reason == "UNREACHABLE"
    await pool.close()
