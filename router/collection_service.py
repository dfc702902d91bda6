"""`vectorfleet.v1.CollectionService`: the catalog over gRPC."""
# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final, TypeAlias

import grpc

from router import validation
from router.access.principal import caller
from router.access.scopes import Action
from router.catalog import Catalog
from router.deadline import Deadline
from vectorfleet import limits
from vectorfleet.v1 import collection_service_pb2 as pb
from vectorfleet.v1 import collection_service_pb2_grpc as pb_grpc

NAME: Final = pb.DESCRIPTOR.services_by_name["CollectionService"].full_name

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CollectionService(pb_grpc.CollectionServiceServicer):
    """Makes, shows and removes collections."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        """Creates a collection."""
        created = await self._catalog.create(request.spec, _deadline(context))
        return pb.CreateCollectionResponse(collection=created)

    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        """Returns a collection with its progress."""
        name = validation.collection_name(request.name, "name")
        return pb.GetCollectionResponse(collection=await self._catalog.describe(name, _deadline(context)))

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        """Returns a page of those collections that the caller may read."""
        may_see = partial(caller.get().scopes.allow, Action.READ)
        return self._catalog.list(request.page_size, request.page_token, may_see)

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        """Removes a collection."""
        async with asyncio.timeout_at(_deadline(context).at_s):
            await self._catalog.delete(validation.collection_name(request.name, "name"))
        return pb.DeleteCollectionResponse()


def _deadline(context: Context) -> Deadline:
    return Deadline.of_caller(context.time_remaining(), limits.CALL_TIMEOUT_DEFAULT_S)
