"""Channels to other nodes, one for each address, made when first needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from vectorfleet.errors import ResourceExhausted, from_rpc_error
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc
from vectorfleet.transport import Transport

if TYPE_CHECKING:
    from vectorfleet.internal.v1.shard_service_pb2_grpc import ShardServiceAsyncStub


class Peers:
    """Calls other shard servers (or this one: an address is an address)."""

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport = transport or Transport()
        self._generation = self._transport.generation
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def codebook(self, address: str, uid: str, version: int, *, bytes_max: int, timeout_s: float) -> bytes:
        """Fetches a codebook file.

        Raises:
            VectorfleetError: the peer lacks it (NOT_FOUND), cannot be reached, or sends more than `bytes_max`.
        """
        request = pb.FetchCodebookRequest(collection_uid=uid, version=version)
        content = bytearray()
        try:
            async for response in self._stub(address).FetchCodebook(request, timeout=timeout_s):
                content += response.chunk
                if len(content) > bytes_max:
                    raise ResourceExhausted(f"codebook {version} from {address} is over {bytes_max} bytes")
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return bytes(content)

    async def sample(self, address: str, request: pb.SampleRequest, *, timeout_s: float) -> AsyncIterator[bytes]:
        """Streams a sample of a shard as little-endian float32 rows. Raises `VectorfleetError`."""
        try:
            async for response in self._stub(address).Sample(request, timeout=timeout_s):
                yield response.vectors
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def keep_only(self, addresses: set[str]) -> None:
        """Closes channels to nodes that are gone."""
        for address in self._channels.keys() - addresses:
            await self._channels.pop(address).close()

    async def close(self) -> None:
        """Closes all channels."""
        await self.keep_only(set())

    def _stub(self, address: str) -> ShardServiceAsyncStub:
        if self._generation != self._transport.generation:
            self._generation = self._transport.generation
            self._channels.clear()  # calls under way keep theirs until they end; nothing else does
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._transport.channel(address)
        return pb_grpc.ShardServiceStub(channel)
