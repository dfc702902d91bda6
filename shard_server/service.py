"""ShardService: what routers, the controller and other nodes may ask of this node.

Finds the replica, has the request checked, takes the work to the right threads; everything else is in the modules that it is
given.
"""
# ruff: noqa: N802 (the contract names the methods)

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from shard_server import checking, describing, reading, search_stream
from shard_server.backup.archive import Archive
from shard_server.codebook_store import CodebookStore
from shard_server.data_dir import checked_uid
from shard_server.engine.replica import Replica
from shard_server.hosted import HostedReplica
from shard_server.hosting import ReplicaHost
from shard_server.searching import Searcher
from shard_server.threads import WorkPool
from shard_server.training import Training
from vectorfleet import limits
from vectorfleet._version import __version__
from vectorfleet.errors import InvalidRequest, NotFound, Unavailable, VectorfleetError
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.internal.v1 import shard_service_pb2_grpc as pb_grpc
from vectorfleet.ledger import Ledger
from vectorfleet.serving import remaining_s
from vectorfleet.telemetry import diagnostics
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.telemetry.work import current

NAME: Final = pb.DESCRIPTOR.services_by_name["ShardService"].full_name
CHUNK_BYTES: Final = 1 << 20
CHECK_ON_LOOP_BYTES_MAX: Final = 256 * 1024
"""Larger writes are checked in a thread, so that other calls are not held up."""
TRAINING_TIMEOUT_DEFAULT_S: Final = 3600.0
SAMPLE_POINTS_MAX: Final = 16_777_216
_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class ServicePools:
    """Where the service's blocking work runs."""

    reads: WorkPool
    """Fetch, scan, samples and codebook files."""
    control: WorkPool
    """Descriptions: never behind reads, so that a loaded node is still seen."""


class ShardServicer(pb_grpc.ShardServiceServicer):
    """The service over a host."""

    def __init__(
        self,
        host: ReplicaHost,
        searcher: Searcher,
        training: Training,
        archive: Archive,
        store: CodebookStore,
        pools: ServicePools,
        data: Path,
        ledger: Ledger,
        stopping: asyncio.Event,
        telemetry: Telemetry,
    ) -> None:
        """Takes what answers; `address` is set once it is known, and `stopping` when long streams shall end."""
        self.address = ""
        self._stopping = stopping
        self._telemetry = telemetry
        self._host = host
        self._searcher = searcher
        self._training = training
        self._archive = archive
        self._store = store
        self._pools = pools
        self._data = data
        self._ledger = ledger

    async def Write(self, request: pb.WriteRequest, context: Context) -> pb.WriteResponse:
        """Logs and applies one mutation."""
        timeout_s = remaining_s(context, limits.CALL_TIMEOUT_DEFAULT_S)
        held = await self._host.replica_for(
            request.collection_uid, request.shard, request.epoch, timeout_s=timeout_s, term=request.term
        )
        current().facts.update(collection=held.record.name, shard=request.shard)
        parts = request.mutation, held.record, held.assignment
        if len(request.mutation.upsert.vectors) <= CHECK_ON_LOOP_BYTES_MAX:
            checking.check_mutation(*parts)
        else:
            await self._pools.reads.run(checking.check_mutation, *parts)
        current().lap("check")
        applied = await held.write(request.mutation, request.term)
        return pb.WriteResponse(seqno=applied.seqno, affected=applied.affected)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Answers a batch of queries on several shards."""
        response = pb.SearchResponse()
        await self._searcher.search(request, remaining_s(context, limits.SEARCH_TIMEOUT_DEFAULT_S), response)
        return response

    def SearchStream(
        self, requests: AsyncIterator[pb.SearchStreamRequest], context: Context
    ) -> AsyncIterator[pb.SearchStreamResponse]:
        """Answers a router's searches over one stream."""
        return search_stream.answer_stream(requests, self._search, self._stopping)

    async def _search(self, request: pb.SearchRequest, timeout_s: float, response: pb.SearchResponse) -> None:
        """Answers one message of a stream: it is looked at as if it were a call of its own."""
        with self._telemetry.served(self._telemetry.begin(f"/{NAME}/Search", request.context.items())):
            await self._searcher.search(request, timeout_s, response)

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> pb.FetchResponse:
        """Returns points by id."""
        if len(request.ids) > limits.POINTS_PER_CALL_MAX:
            raise InvalidRequest(f"at most {limits.POINTS_PER_CALL_MAX} ids a call", field="ids")
        held, deadline = await self._find(request, context)
        return await held.run(self._pools.reads, deadline, reading.fetch, request)

    async def Scan(self, request: pb.ScanRequest, context: Context) -> pb.ScanResponse:
        """Returns points in the order of their ids; fewer than asked for where they are large."""
        if not 1 <= request.limit <= limits.SCROLL_PAGE_MAX:
            raise InvalidRequest(f"limit must be 1 to {limits.SCROLL_PAGE_MAX}", field="limit")
        held, deadline = await self._find(request, context)
        return await held.run(self._pools.reads, deadline, reading.scan, request)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        """Says how each replica stands."""
        deadline = time.monotonic() + remaining_s(context, limits.CALL_TIMEOUT_DEFAULT_S)
        held_ones = self._host.replicas
        described = await asyncio.gather(
            *(self._describe(held, deadline) for held in held_ones if request.collection_uid in ("", held.uid))
        )
        node = await self._pools.control.run_until(
            deadline,
            describing.describe_node,
            *(self._host.node_id, self.address, __version__, len(held_ones)),
            *(self._host.unknown_collections, self._data, self._ledger),
        )
        return pb.DescribeResponse(node=node, epoch=self._host.state.epoch, replicas=described)

    async def Sample(self, request: pb.SampleRequest, context: Context) -> AsyncIterator[pb.SampleResponse]:
        """Streams a uniform sample of raw vectors."""
        if not 1 <= request.limit <= SAMPLE_POINTS_MAX:
            raise InvalidRequest(f"limit must be 1 to {SAMPLE_POINTS_MAX}", field="limit")
        held, deadline = await self._find(request, context)
        sample = await held.run(self._pools.reads, deadline, Replica.sample, request.limit, request.seed)
        step = max(1, CHUNK_BYTES // (4 * held.record.dim))
        for first in range(0, len(sample), step):
            yield pb.SampleResponse(vectors=sample[first : first + step].astype("<f4", copy=False).tobytes())

    async def TrainCodebook(self, request: pb.TrainCodebookRequest, context: Context) -> pb.TrainCodebookResponse:
        """Trains the next codebook of a collection."""
        record = self._host.state.by_uid(request.collection_uid)
        if record is None:
            raise Unavailable(
                f"node {self._host.node_id} knows no collection {request.collection_uid}", reason="STALE_SHARD_MAP"
            )
        checking.check_training(request)
        trained = await self._training.train(request, record)
        return pb.TrainCodebookResponse(checksum=trained.checksum, sampled_points=trained.sampled_points)

    async def FetchCodebook(
        self, request: pb.FetchCodebookRequest, context: Context
    ) -> AsyncIterator[pb.FetchCodebookResponse]:
        """Streams a codebook file."""
        try:
            uid = checked_uid(request.collection_uid)
        except ValueError as error:
            raise InvalidRequest(str(error), field="collection_uid") from error
        content = await self._pools.reads.run(self._store.load, uid, request.version)
        if content is None:
            raise NotFound(f"node {self._host.node_id} has no codebook {request.version} of collection {uid}")
        for first in range(0, len(content), CHUNK_BYTES):
            yield pb.FetchCodebookResponse(chunk=content[first : first + CHUNK_BYTES])

    async def BackUpShard(
        self, request: pb.BackUpShardRequest, context: Context
    ) -> AsyncIterator[pb.BackUpShardResponse]:
        """Copies one shard to a backup's destination."""
        timeout_s = remaining_s(context, limits.BACKUP_TIMEOUT_DEFAULT_S)
        held = await self._host.replica_for(
            request.collection_uid,
            request.shard,
            request.epoch,
            timeout_s=min(timeout_s, limits.CALL_TIMEOUT_DEFAULT_S),
        )
        async for response in self._archive.back_up(held, request):
            yield response

    async def WriteBackup(self, request: pb.WriteBackupRequest, context: Context) -> pb.WriteBackupResponse:
        """Writes the manifest of a backup."""
        await self._archive.write(request.destination, request.manifest)
        return pb.WriteBackupResponse()

    async def ReadBackup(self, request: pb.ReadBackupRequest, context: Context) -> pb.ReadBackupResponse:
        """Reads the manifest of a backup."""
        return pb.ReadBackupResponse(manifest=await self._archive.read(request.source, request.backup))

    async def Tune(self, request: pb.TuneRequest, context: Context) -> pb.TuneResponse:
        """Changes what this process logs and traces."""
        return pb.TuneResponse(settings=diagnostics.change(self._telemetry, request.settings))

    async def Diagnose(self, request: pb.DiagnoseRequest, context: Context) -> pb.DiagnoseResponse:
        """Says what a bug report needs to know."""
        return pb.DiagnoseResponse(process=await diagnostics.told_by(self._telemetry, self._host.node_id))

    async def _find(
        self, request: pb.FetchRequest | pb.ScanRequest | pb.SampleRequest, context: Context
    ) -> tuple[HostedReplica, float]:
        timeout_s = remaining_s(context, limits.CALL_TIMEOUT_DEFAULT_S)
        deadline = time.monotonic() + timeout_s
        held = await self._host.replica_for(request.collection_uid, request.shard, request.epoch, timeout_s=timeout_s)
        current().facts.update(collection=held.record.name, shard=request.shard)
        return held, deadline

    async def _describe(self, held: HostedReplica, deadline: float) -> pb.ReplicaDescription:
        measured = None
        if held.serving:
            try:
                measured = await held.run(self._pools.control, deadline, describing.measure)
            except VectorfleetError as error:  # one replica that closes or is busy must not hide the others
                _log.info("%s cannot be measured: %s", held.name, error)
        return describing.describe_replica(held, self._host.node_id, measured)
