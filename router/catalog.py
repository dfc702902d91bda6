"""Collections: found by name, created, described, listed, deleted. The shard map is the only memory.

Changes go through the coordinator's compare-and-swap; the controller then assigns shards to nodes, and creation waits until every
replica serves. Nothing here remembers anything, so that any router can go on where another stopped.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Final

from router import validation
from router.deadline import Deadline
from router.describing import describe_collection, why_not_serving
from router.embedding import Embedder
from router.nodes import NodePool
from router.progress import collection, collection_with_progress
from vectorfleet import errors, limits
from vectorfleet.cluster.coordinator import Conflict, Coordinator
from vectorfleet.cluster.placement import hash_ranges
from vectorfleet.cluster.shard_map import CollectionRecord, IndexConfig, ShardAssignment
from vectorfleet.v1 import collection_service_pb2, types_pb2

POLL_S: Final = 0.05
"""How often the nodes of a new collection are asked whether they serve."""


class Catalog:
    """The collections, through the shard map."""

    def __init__(self, coordinator: Coordinator, nodes: NodePool, embedder: Embedder) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._embedder = embedder

    def find(self, name: str) -> CollectionRecord:
        """Returns a collection.

        Raises:
            NotFound: there is none of this name.
            Unavailable: COORDINATOR_UNAVAILABLE, no shard map has been loaded yet.
        """
        state = self._coordinator.state
        record = state.collections.get(name)
        if record is None:
            if state.epoch == 0:
                raise errors.Unavailable("no shard map has been loaded yet", reason="COORDINATOR_UNAVAILABLE")
            raise errors.NotFound(f"there is no collection {name!r}")
        if record.restoring is not None:
            raise errors.NotFound(f"there is no collection {name!r} yet: it is being restored")
        return record

    def visible(self) -> list[CollectionRecord]:
        """All collections that can be seen, by name."""
        collections = self._coordinator.state.collections
        return [record for _, record in sorted(collections.items()) if record.restoring is None]

    async def create(self, spec: types_pb2.CollectionSpec, deadline: Deadline) -> types_pb2.Collection:
        """Creates a collection; returns when all of its replicas serve.

        Raises:
            InvalidRequest: a field of the specification is at fault.
            AlreadyExists: the name is taken.
            FailedPrecondition: the embedding model cannot be used.
            Unavailable: NO_NODES, COORDINATOR_UNAVAILABLE.
            DeadlineExceeded: the collection exists, but not all of it serves yet.
        """
        validation.collection_spec(spec)
        if spec.dim:
            validation.check_subquantisers(spec.index.m, spec.dim)
        self._refuse_taken(spec.name)
        try:
            async with asyncio.timeout_at(deadline.answer_by_s()):
                dim = await self._dimension(spec)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"the embedding model {spec.embedding_model!r} is still being loaded; where it comes from a hub, that "
                "takes its time: try again, or with a longer deadline"
            ) from None
        record = self._record(spec, dim)
        try:
            await self._coordinator.create_collection(record)
        except Conflict:
            raise errors.AlreadyExists(f"collection {spec.name!r} exists") from None
        return await self._serving(record, deadline)

    async def describe(self, name: str, deadline: Deadline) -> types_pb2.Collection:
        """Returns a collection and how far its index is, as far as its nodes answer."""
        record = self.find(name)
        descriptions = await describe_collection(self._nodes, self._coordinator.state, record, deadline)
        # The codebook may have changed meanwhile: judge by the newest record, unless it is gone.
        newest = self._coordinator.state.by_uid(record.uid) or record
        return collection_with_progress(newest, descriptions)

    def list(
        self, page_size: int, page_token: str, may_see: Callable[[str], bool]
    ) -> collection_service_pb2.ListCollectionsResponse:
        """Returns a page of those collections, by name, that the caller may see."""
        size = validation.page_size(page_size, limits.LIST_PAGE_MAX, limits.LIST_PAGE_MAX)
        after = _name_of(page_token)
        records = [record for record in self.visible() if record.name > after and may_see(record.name)]
        page = collection_service_pb2.ListCollectionsResponse(
            collections=[collection(record) for record in records[:size]]
        )
        if len(records) > size:
            page.next_page_token = base64.urlsafe_b64encode(records[size - 1].name.encode()).decode()
        return page

    async def delete(self, name: str) -> None:
        """Removes a collection, also one that is being restored; returns when this router no longer knows it.

        Raises:
            NotFound: there is none of this name.
            Unavailable: COORDINATOR_UNAVAILABLE.
        """
        record = self._coordinator.state.collections.get(name) or self.find(name)
        await self.remove(record)

    async def remove(self, record: CollectionRecord) -> None:
        """Removes a collection by its record, whatever changed in it meanwhile; raises as `delete` does."""
        uid, name = record.uid, record.name
        while True:
            epoch = self._coordinator.state.epoch
            try:
                await self._coordinator.delete_collection(record)
                break
            except Conflict:  # the controller changed it meanwhile, or somebody else deleted it
                newer = self._coordinator.state.by_uid(uid)
                if newer is not None and newer.mod_revision == record.mod_revision:
                    newer = (await self._coordinator.changed(epoch)).by_uid(uid)
                if newer is None:
                    raise errors.NotFound(f"there is no collection {name!r}") from None
                record = newer
        while (state := self._coordinator.state).by_uid(uid) is not None:
            await self._coordinator.changed(state.epoch)

    def _refuse_taken(self, name: str) -> None:
        if name in self._coordinator.state.collections:
            raise errors.AlreadyExists(f"collection {name!r} exists")

    async def _dimension(self, spec: types_pb2.CollectionSpec) -> int:
        if not spec.embedding_model:
            return spec.dim
        dim = await self._embedder.dimension(spec.embedding_model)
        if spec.dim and spec.dim != dim:
            validation.refuse("spec.dim", f"the model {spec.embedding_model!r} gives {dim} components, not {spec.dim}")
        if dim > limits.DIM_MAX:
            validation.refuse(
                "spec.embedding_model", f"the model gives {dim} components; a vector has at most {limits.DIM_MAX}"
            )
        validation.check_subquantisers(spec.index.m, dim)
        return dim

    def _record(self, spec: types_pb2.CollectionSpec, dim: int) -> CollectionRecord:
        state = self._coordinator.state
        if not state.nodes:
            if state.epoch == 0:
                raise errors.Unavailable("no shard map has been loaded yet", reason="COORDINATOR_UNAVAILABLE")
            raise errors.Unavailable("no shard server is registered", reason="NO_NODES")
        shards = spec.shards or min(len(state.nodes), limits.SHARDS_MAX)
        default_metric = types_pb2.METRIC_COSINE if spec.embedding_model else types_pb2.METRIC_L2
        return CollectionRecord(
            name=spec.name,
            uid=uuid.uuid4().hex,
            dim=dim,
            metric=int(spec.metric or default_metric),
            shards=tuple(
                ShardAssignment(shard, first, last) for shard, (first, last) in enumerate(hash_ranges(shards))
            ),
            replicas=spec.replicas or 1,
            index=IndexConfig(
                kind=int(spec.index.kind or types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN),
                nlist=spec.index.nlist,
                m=spec.index.m,
                train_points=spec.index.train_points or limits.TRAIN_POINTS_DEFAULT,
            ),
            embedding_model=spec.embedding_model,
            create_time_ms=time.time_ns() // 1_000_000,
        )

    async def _serving(self, created: CollectionRecord, deadline: Deadline) -> types_pb2.Collection:
        """Waits until every replica of a new collection serves."""
        why: errors.VectorfleetError | None = errors.Unavailable("its shards are not assigned to nodes yet")
        patience = Deadline(deadline.answer_by_s())
        try:
            async with asyncio.timeout_at(patience.at_s):
                while True:
                    state = self._coordinator.state
                    record = state.by_uid(created.uid)
                    if record is not None and record.assigned:
                        descriptions = await describe_collection(self._nodes, state, record, patience)
                        whys = (why_not_serving(descriptions, record, shard) for shard in record.shards)
                        why = next((each for each in whys if each is not None), None)
                        if why is None:
                            return collection_with_progress(record, descriptions)
                    elif record is None and created.uid in state.deleted_uids:
                        raise errors.NotFound(f"collection {created.name!r} was deleted meanwhile")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._coordinator.changed(state.epoch)
        except TimeoutError:
            message = f"collection {created.name!r} exists, but does not serve yet: {why.message if why else ''}"
            raise errors.DeadlineExceeded(message) from None


def _name_of(page_token: str) -> str:
    try:
        return base64.urlsafe_b64decode(page_token.encode()).decode()
    except ValueError:
        validation.refuse("page_token", "this is no page token of this method")
