"""A client of the router under test, and what its tests ask again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from tests.unit.router.fake_node import Fleet
from vectorfleet import errors
from vectorfleet.v1 import (
    cluster_service_pb2_grpc,
    collection_service_pb2,
    collection_service_pb2_grpc,
    point_service_pb2,
    point_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    types_pb2,
)

DIM, SHARDS, TIMEOUT_S = 4, 6, 20.0


class Api:
    def __init__(self, under: Fleet) -> None:
        self.collections: Any = collection_service_pb2_grpc.CollectionServiceStub(under.channel)
        self.points: Any = point_service_pb2_grpc.PointServiceStub(under.channel)
        self.searches: Any = search_service_pb2_grpc.SearchServiceStub(under.channel)
        self.cluster: Any = cluster_service_pb2_grpc.ClusterServiceStub(under.channel)

    async def create(self, name: str = "c", **spec: Any) -> types_pb2.Collection:
        spec = {"dim": DIM, "shards": SHARDS, **spec}
        request = collection_service_pb2.CreateCollectionRequest(spec=types_pb2.CollectionSpec(name=name, **spec))
        response = await self.collections.CreateCollection(request, timeout=TIMEOUT_S)
        return response.collection

    async def upsert(self, vectors: np.ndarray, ids: list[str], name: str = "c", **rest: Any) -> Any:
        packed = point_service_pb2.PackedPoints(ids=ids, vectors=vectors.astype("<f4").tobytes(), **rest)
        request = point_service_pb2.UpsertRequest(collection=name, packed=packed)
        return await self.points.Upsert(request, timeout=TIMEOUT_S)

    async def search(self, vectors: np.ndarray, name: str = "c", timeout_s: float = TIMEOUT_S, **rest: Any) -> Any:
        return await self.searches.Search(question(vectors, name, **rest), timeout=timeout_s)


def question(vectors: np.ndarray, name: str = "c", **rest: Any) -> search_service_pb2.SearchRequest:
    queries = [search_service_pb2.Query(vector=vector.astype("<f4").tobytes()) for vector in vectors]
    return search_service_pb2.SearchRequest(collection=name, queries=queries, **rest)


async def refused(call: Any) -> errors.VectorfleetError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.from_rpc_error(caught.value)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():  # noqa: ASYNC110 (other processes and gRPC decide it, no event of ours)
            await asyncio.sleep(0.01)


def ids_of(response: Any) -> list[list[str]]:
    return [[hit.id for hit in result.hits] for result in response.results]


async def loaded(api: Api, rng: np.random.Generator, count: int = 60) -> np.ndarray:
    await api.create()
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    await api.upsert(vectors, [f"{i:03}" for i in range(count)], payloads=[b'{"n":%d}' % i for i in range(count)])
    return vectors
