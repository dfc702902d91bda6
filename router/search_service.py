"""`vectorfleet.v1.SearchService`: from a public search to its answer, step by step; each step lives elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Final

import grpc

from router import contents, search_stream, tokens, validation
from router.budget import SEARCH_BYTES_MAX, Budgets
from router.catalog import Catalog
from router.deadline import Deadline
from router.embedding import Embedder, Purpose
from router.metrics import RouterMetrics
from router.reads import Reads
from router.recall_check import RecallChecks
from router.results import search_response
from router.searches import MERGE_ON_LOOP_MAX, Searches, Share
from router.texts import embed_texts
from router.validation import Matrix, SearchOptions
from vectorfleet import errors, limits
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.telemetry.process import Telemetry
from vectorfleet.telemetry.work import current
from vectorfleet.v1 import search_service_pb2

NAME: Final = search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name


class SearchService:
    """Answers searches, alone or over a stream."""

    def __init__(
        self,
        catalog: Catalog,
        searches: Searches,
        reads: Reads,
        embedder: Embedder,
        stopping: asyncio.Event,
        telemetry: Telemetry,
        metrics: RouterMetrics,
        checks: RecallChecks,
        budgets: Budgets,
    ) -> None:
        self._metrics = metrics
        self._checks = checks
        self._catalog = catalog
        self._searches = searches
        self._reads = reads
        self._embedder = embedder
        self._stopping = stopping
        self._telemetry = telemetry
        self._budget = budgets.searches

    def install(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server.

        By hand, since messages of a stream need a deserialiser that does not end the stream.
        """
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Search": grpc.unary_unary_rpc_method_handler(
                self.search,
                search_service_pb2.SearchRequest.FromString,
                search_service_pb2.SearchResponse.SerializeToString,
            ),
            "SearchStream": grpc.stream_stream_rpc_method_handler(
                self.search_stream,
                search_stream.decode,
                search_service_pb2.SearchStreamResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    def search(
        self, request: search_service_pb2.SearchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Awaitable[search_service_pb2.SearchResponse]:
        """Answers 1 to 1,024 queries."""
        return self._answer(request, Deadline.of_caller(context.time_remaining(), limits.SEARCH_TIMEOUT_DEFAULT_S))

    def search_stream(
        self,
        requests: AsyncIterator[search_service_pb2.SearchStreamRequest | search_stream.Undecodable],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[search_service_pb2.SearchStreamResponse]:
        """Answers a stream of searches."""
        remaining_s = context.time_remaining()
        whole = None if remaining_s is None else Deadline.after(remaining_s)
        return search_stream.answer_stream(requests, self._answer_message, whole, self._stopping)

    async def _answer(
        self, request: search_service_pb2.SearchRequest, deadline: Deadline
    ) -> search_service_pb2.SearchResponse:
        record = self._catalog.find(validation.collection_name(request.collection))
        options = validation.search_options(request)
        work = current()
        work.facts.update(
            collection=record.name,
            queries=len(request.queries),
            k=options.k,
            nprobe=options.nprobe,
            exact=options.exact,
            filter=bool(options.wanted),
        )
        min_coverage = validation.min_coverage(request)
        min_seqno = tokens.read(request.consistency_token, record)
        self._searches.refuse_late(record, options, min_seqno, len(request.queries), deadline)
        queries = validation.queries(request, record.dim)
        validation.check_vectors(
            queries.vectors,
            record.metric,
            lambda row: f"queries[{row}].{request.queries[row].WhichOneof('query')}",
            skip=frozenset(queries.text_rows),
        )
        work.lap("validate")
        size_bytes = _bytes_at_most(record, len(queries.vectors), options)
        self._budget.take(size_bytes)
        try:
            vectors = queries.vectors
            if queries.texts:
                vectors = await embed_texts(
                    self._embedder, queries, record, Purpose.QUERY, lambda row: f"queries[{row}].text", deadline
                )
                work.lap("embed")
            try:
                share = await self._searches.search(record, vectors, options, min_seqno, deadline)
            except errors.ResourceExhausted as error:
                if error.reason != "RESPONSE_TOO_LARGE" or not (options.with_payload or options.with_vector):
                    raise
                share = await self._search_twice(record, vectors, options, min_seqno, deadline)
            work.skip()
            work.facts["coverage"] = f"{share.coverage.shards_answered}/{share.coverage.shards_total}"
            self._metrics.answered(record, share.coverage)
            self._checks.offer(record, vectors, options, min_seqno, share)
            _demand(min_coverage, share)
            if len(share.winners.ids) <= MERGE_ON_LOOP_MAX:
                response = search_response(share, record.dim, options, packed=request.packed)
            else:
                response = await asyncio.to_thread(search_response, share, record.dim, options, packed=request.packed)
            work.lap("render")
            return response
        finally:
            self._budget.give(size_bytes)

    async def _search_twice(
        self,
        record: CollectionRecord,
        vectors: Matrix,
        options: SearchOptions,
        min_seqno: Mapping[int, int],
        deadline: Deadline,
    ) -> Share:
        """Searches, and then looks up what hits carry: for where that does not fit the messages of one round."""
        bare = options._replace(with_payload=False, with_vector=False)
        share = await self._searches.search(record, vectors, bare, min_seqno, deadline)
        return await contents.looked_up(self._reads, record, share, options, deadline)

    async def _answer_message(
        self, request: search_service_pb2.SearchRequest, deadline: Deadline
    ) -> search_service_pb2.SearchResponse:
        """Answers one search of a stream: it is looked at as if it were a call of its own."""
        with self._telemetry.served(self._telemetry.begin_message(current())):
            return await self._answer(request, deadline)


def _bytes_at_most(record: CollectionRecord, queries: int, options: SearchOptions) -> int:
    """What a search may come to hold: its hits, or what the nodes' messages and the answer can carry of them."""
    hits_bytes = queries * options.k * options.hit_bytes(record.dim)
    if hits_bytes > limits.MESSAGE_BYTES_MAX:
        messages = 1 + len({shard.primary for shard in record.shards})
        hits_bytes = min(hits_bytes, messages * limits.MESSAGE_BYTES_MAX, SEARCH_BYTES_MAX // 4)
    return queries * 4 * record.dim + hits_bytes


def _demand(min_coverage: float, share: Share) -> None:
    """Refuses an answer that speaks for too few shards."""
    coverage = share.coverage
    answered, total = coverage.shards_answered, coverage.shards_total
    # The caller's share went through float32: 0.1 arrives as a little more than 1 of 10.
    if answered < total and answered / total < min_coverage - 1e-6:
        first = coverage.missing[0]
        raise errors.Unavailable(
            f"{answered} of {total} shards answered, min_coverage asks for {min_coverage:g}; "
            f"shard {first.shard}: {first.reason}, {first.message}",
            reason="TOO_FEW_SHARDS",
        )
