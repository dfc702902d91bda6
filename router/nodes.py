"""The ways to the nodes: one channel to each, and what is known of how the node answers.

It does not choose replicas (replica_choice.py) and interprets no answer. It remembers the address of a node whose lease
lapsed for as long as the shard map names that node: a node that lost etcd alone still serves, and may be asked.

Invariant: a channel exists only for addresses of known nodes; it is closed when the last such node is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc

from router.circuit import Circuit
from router.hedging import AFTER_MIN_S, late_after_s
from router.latency import Latency
from router.node_stream import NodeStream, Outcome, Told
from router.replica_choice import Standing, Standings
from vectorfleet import errors
from vectorfleet.cluster.coordinator import Coordinator
from vectorfleet.cluster.shard_map import ClusterState
from vectorfleet.internal.v1 import shard_service_pb2, shard_service_pb2_grpc
from vectorfleet.telemetry.outgoing import carrying
from vectorfleet.transport import Transport

PROBE_INTERVAL_S: Final = 0.25
PROBE_TIMEOUT_S: Final = 1.0
_CLOSE_GRACE_S: Final = 1.0
_SILENCE: Final = frozenset({"DEADLINE_EXCEEDED", "UNREACHABLE"})
"""Errors that the way to a node, or the caller's own patience, may have made without the node."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Node:
    """The way to one node."""

    address: str
    channel: grpc.aio.Channel
    stub: shard_service_pb2_grpc.ShardServiceAsyncStub
    generation: int = 0
    """Of the certificates that the channel was made with."""
    circuit: Circuit = field(default_factory=Circuit)
    latency: Latency = field(default_factory=Latency)
    """Of its searches, but for those that are long by their nature."""
    outstanding: int = 0
    """Queries of searches that it has not answered."""
    under_way: set[Any] = field(default_factory=set)
    """Calls that wait for this node, other than those on its stream."""
    stream: NodeStream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = NodeStream(self.stub)

    def standing(self, now_s: float) -> Standing:
        """What speaks against asking it."""
        silent = self.circuit.silent_for(AFTER_MIN_S, now_s)  # seldom: the rest takes longer to find out
        quiet = silent and self.circuit.silent_for(late_after_s(self.latency, now_s), now_s)
        return Standing(quiet, self.outstanding, self.latency.mean_s(now_s))

    @property
    def out_of_reach(self) -> bool:
        """Whether the last attempt to connect failed: calls end at once then, so that none is under way."""
        return self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def call(self, call: Awaitable[T]) -> T:
        """Awaits a call to this node (a gRPC call, or a coroutine that makes one), and remembers whether it was answered.

        Raises:
            VectorfleetError: what the node, or the way to it, answered; `Unavailable` where it is given up meanwhile.
        """
        if asyncio.iscoroutine(call):
            call = asyncio.ensure_future(call)  # what can be cancelled, as gRPC's own calls can
        self.circuit.asked(time.monotonic())
        self.under_way.add(call)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            told = errors.from_rpc_error(error)
            if told.reason == "CANCELLED":  # not by us: the other side let go of the connection
                told = errors.Unavailable(f"the call broke: {told.message}", reason="UNREACHABLE")
            if told.reason not in _SILENCE:
                self.circuit.answered()
            raise told from error
        except asyncio.CancelledError:
            if _cancelling():
                raise
            why = "it does not answer" if self.circuit.open else "its channel was closed"
            raise errors.Unavailable(why, reason="UNREACHABLE") from None
        finally:
            self.under_way.discard(call)
        self.circuit.answered()
        return response

    def ask(self, message: shard_service_pb2.SearchStreamRequest, timeout_s: float, told: Told) -> Callable[[], None]:
        """Searches over the node's stream, as `NodeStream.ask` does, and remembers whether it was answered."""
        self.circuit.asked(time.monotonic())

        def heard(outcome: Outcome) -> None:
            if not isinstance(outcome, errors.VectorfleetError) or outcome.reason not in _SILENCE:
                self.circuit.answered()
            told(outcome)

        return self.stream.ask(message, timeout_s, heard)

    def give_up(self) -> None:
        """Ends all calls that wait for this node."""
        self.stream.end()
        for call in list(self.under_way):
            call.cancel()


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class NodePool:
    """All nodes that the shard map knows, by id and by address."""

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport = transport or Transport()
        self._nodes: dict[str, Node] = {}
        self._addresses: dict[str, str] = {}
        self._registered: frozenset[str] = frozenset()

    def stub(self, address: str) -> shard_service_pb2_grpc.ShardServiceAsyncStub:
        """The stub for an address; its channel is made on the first call."""
        return self.at(address).stub

    def at(self, address: str) -> Node:
        """The node at an address."""
        node = self._nodes.get(address)
        generation = self._transport.generation
        if node is None:
            node = self._nodes[address] = Node(address, *self._dial(address), generation)
        elif node.generation != generation:
            # Calls under way keep the old channel until they end; nothing else does.
            node.stream.retire()
            node.channel, node.stub = self._dial(address)
            node.stream = NodeStream(node.stub)
            node.generation = generation
        return node

    def _dial(self, address: str) -> tuple[grpc.aio.Channel, shard_service_pb2_grpc.ShardServiceAsyncStub]:
        channel = self._transport.channel(address)
        return channel, carrying(shard_service_pb2_grpc.ShardServiceStub(channel))

    def find(self, node_id: str, state: ClusterState) -> Node | None:
        """The node of an id, at its present or last known address; None when it was never seen."""
        info = state.nodes.get(node_id)
        if info is not None:
            self._addresses[node_id] = info.address
        address = self._addresses.get(node_id)
        return None if address is None else self.at(address)

    def known(self, node_id: str) -> Node | None:
        """The node of an id that a call went to already; makes no channel."""
        return self._nodes.get(self._addresses.get(node_id, ""))

    def standings(self, state: ClusterState) -> Standings:
        """How nodes stand now: those that a call has a chance with."""
        now_s = time.monotonic()

        def standing(node_id: str) -> Standing | None:
            node = self.find(node_id, state)
            return None if node is None or node.circuit.open else node.standing(now_s)

        return standing

    async def follow(self, coordinator: Coordinator) -> None:
        """Closes the channels of nodes that are gone, for as long as it runs; probes those that do not answer."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probe())
            state = coordinator.state
            while True:
                await self.retain(state)
                state = await coordinator.changed(state.epoch)

    async def retain(self, state: ClusterState) -> None:
        """Learns the nodes' addresses, and closes the channels to all that no node has any more.

        A node that registers anew is dialled anew where it was out of reach: a name that resolved to nothing while the node was
        away is looked up again by gRPC after up to two minutes only.
        """
        named = {node for record in state.collections.values() for shard in record.shards for node in shard.replicas}
        known = {node: address for node, address in self._addresses.items() if node in named}
        self._addresses = known | {node.id: node.address for node in state.nodes.values()}
        addresses = set(self._addresses.values())
        registered = frozenset(state.nodes)
        back = {state.nodes[node].address for node in registered - self._registered}
        self._registered = registered
        stale = {address for address in back & self._nodes.keys() if self._nodes[address].out_of_reach}
        gone = [self._nodes.pop(address) for address in list(self._nodes) if address not in addresses - stale]
        await asyncio.gather(*(node.channel.close(_CLOSE_GRACE_S) for node in gone))

    async def close(self) -> None:
        """Closes all channels; calls under way end."""
        nodes, self._nodes = list(self._nodes.values()), {}
        await asyncio.gather(*(node.channel.close() for node in nodes))

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            now_s = time.monotonic()
            await asyncio.gather(
                *(self._ask(node) for node in list(self._nodes.values()) if node.circuit.suspect(now_s))
            )

    async def _ask(self, node: Node) -> None:
        if self._nodes.get(node.address) is not node:
            return  # given up since it was listed: its channel is closed
        request = shard_service_pb2.DescribeRequest(collection_uid="-")  # of no collection: the smallest answer
        try:
            await node.call(node.stub.Describe(request, timeout=PROBE_TIMEOUT_S))
        except errors.VectorfleetError as error:
            if error.reason not in _SILENCE:
                return
            was_open = node.circuit.open
            node.circuit.probe_lost()
            if node.circuit.open and not was_open:
                _log.warning("node at %s does not answer and is passed over until it does: %s", node.address, error)
                self._transport.unreached(node.address, error.message)
                node.give_up()
        else:
            _log.debug("node at %s answers", node.address)
