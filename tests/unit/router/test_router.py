"""A whole router over real gRPC, before fake nodes: answers, coverage, faults, errors, streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from tests.unit.router.api import DIM, SHARDS, TIMEOUT_S, Api, ids_of, loaded, question, refused, until
from tests.unit.router.fake_node import fleet
from vectorfleet import errors
from vectorfleet.v1 import (
    cluster_service_pb2,
    collection_service_pb2,
    point_service_pb2,
    search_service_pb2,
    types_pb2,
)


async def test_the_whole_way(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        created = await api.create()
        assert (created.spec.metric, created.spec.shards, created.spec.replicas) == (types_pb2.METRIC_L2, SHARDS, 1)
        assert created.spec.index.train_points == 10_000
        vectors = rng.standard_normal((60, DIM)).astype(np.float32)
        ids = [f"{i:03}" for i in range(60)]
        written = await api.upsert(vectors, ids, payloads=[b'{"n":%d}' % i for i in range(60)])
        assert written.upserted == 60

        found = await api.search(vectors[:5], k=7, with_payload=True, with_vector=True)
        for query, result in zip(vectors, found.results, strict=False):
            distances = np.linalg.norm(vectors - query, axis=1)
            order = np.argsort(distances, kind="stable")[:7]
            assert [hit.id for hit in result.hits] == [ids[row] for row in order]
            np.testing.assert_allclose([hit.score for hit in result.hits], distances[order], rtol=1e-6)
            assert [hit.vector for hit in result.hits] == [vectors[row].tobytes() for row in order]
            assert [hit.payload for hit in result.hits] == [b'{"n":%d}' % row for row in order]
        assert (found.coverage.shards_total, found.coverage.shards_answered) == (SHARDS, SHARDS)

        got = await api.points.Get(
            point_service_pb2.GetRequest(collection="c", ids=["007", "nope", "003", "007"], with_vector=True)
        )
        assert [point.id for point in got.points] == ["007", "003"]
        assert got.points[0].vector == vectors[7].tobytes()
        assert (await api.points.Count(point_service_pb2.CountRequest(collection="c"))).points == 60
        gone = await api.points.Delete(point_service_pb2.DeleteRequest(collection="c", ids=["007", "nope", "007"]))
        assert gone.deleted == 1
        assert (await api.points.Count(point_service_pb2.CountRequest(collection="c"))).points == 59
        described = await api.collections.GetCollection(collection_service_pb2.GetCollectionRequest(name="c"))
        assert described.collection.progress.points == 59
        assert described.collection.progress.settled

        await api.collections.DeleteCollection(collection_service_pb2.DeleteCollectionRequest(name="c"))
        assert (await refused(api.search(vectors[:1]))).reason == "COLLECTION_NOT_FOUND"
        assert created.uid in under.cluster.state.deleted_uids


@pytest.mark.parametrize("metric", [types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE])
async def test_similarities_descend(metric: int, rng: np.random.Generator) -> None:
    async with fleet("n1", metric=types_pb2.METRIC_DOT) as under:
        api = Api(under)
        await api.create(metric=metric)
        vectors = rng.standard_normal((40, DIM)).astype(np.float32)
        await api.upsert(vectors, [str(i) for i in range(40)])
        (result,) = (await api.search(vectors[:1], k=40)).results
        assert [hit.id for hit in result.hits] == [str(row) for row in np.argsort(-(vectors @ vectors[0]))]


async def test_scroll_sees_each_point_once(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        await loaded(api, rng, 137)
        for page_size in (1, 10, 137, 1000):
            seen: list[str] = []
            token = ""
            while True:
                request = point_service_pb2.ScrollRequest(collection="c", page_size=page_size, page_token=token)
                page = await api.points.Scroll(request, timeout=TIMEOUT_S)
                assert len(page.points) <= page_size
                seen += [point.id for point in page.points]
                token = page.next_page_token
                if not token:
                    break
            assert seen == [f"{i:03}" for i in range(137)]
        await api.create("other")
        request = point_service_pb2.ScrollRequest(collection="c", page_size=1)
        token = (await api.points.Scroll(request)).next_page_token
        request = point_service_pb2.ScrollRequest(collection="other", page_token=token)
        assert (await refused(api.points.Scroll(request))).field == "page_token"


async def test_the_last_of_each_id_wins(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        await api.create()
        vectors = rng.standard_normal((3, DIM)).astype(np.float32)
        assert (await api.upsert(vectors, ["a", "b", "a"])).upserted == 2
        got = await api.points.Get(point_service_pb2.GetRequest(collection="c", ids=["a"], with_vector=True))
        assert got.points[0].vector == vectors[2].tobytes()


async def test_a_shard_that_fails_costs_its_part(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        bad = next(iter(under.nodes["n1"].shards))[1]
        under.nodes["n1"].refuse[bad] = errors.DataLoss("segment 7 is damaged")
        found = await api.search(vectors[:3], k=60)
        assert found.coverage.shards_answered == SHARDS - 1
        assert [(m.shard, m.reason) for m in found.coverage.missing] == [(bad, "DATA_LOSS")]
        assert all(0 < len(hits) < 60 for hits in ids_of(found))
        error = await refused(api.search(vectors[:3], min_coverage=1.0))
        assert error.reason == "TOO_FEW_SHARDS"
        assert (
            await api.search(vectors[:3], min_coverage=(SHARDS - 1) / SHARDS)
        ).coverage.shards_answered == SHARDS - 1
        # Writes and reads that need the shard say so.
        request = point_service_pb2.ScrollRequest(collection="c")
        assert (await refused(api.points.Scroll(request))).reason == "DATA_LOSS"


async def test_one_retry_after_a_stale_map(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.nodes["n1"].stale = 1
        assert not (await api.search(vectors[:1])).coverage.missing
        under.nodes["n1"].stale = 1
        await api.upsert(vectors[:1], ["000"])
        under.nodes["n1"].stale = 1_000
        found = await api.search(vectors[:1])
        assert {missing.reason for missing in found.coverage.missing} == {"STALE_SHARD_MAP"}
        under.nodes["n1"].stale = 1_000
        error = await refused(api.upsert(vectors, [str(i) for i in range(60)]))
        assert error.reason == "STALE_SHARD_MAP"
        assert "on node n1" in error.message


async def test_searches_that_wait_travel_together(rng: np.random.Generator) -> None:
    async with fleet("n1", batches_in_flight=1) as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        node = under.nodes["n1"]
        node.searches.clear()
        answers = await asyncio.gather(*(api.search(vectors[i : i + 1], k=1) for i in range(60)))
        assert [ids_of(answer)[0][0] for answer in answers] == [f"{i:03}" for i in range(60)]
        assert sum(request.query_count for request in node.searches) == 60
        assert len(node.searches) < 60


async def test_a_token_is_checked_and_passed_on(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        await api.create()
        await api.create("other")
        vectors = rng.standard_normal((100, DIM)).astype(np.float32)
        token = (await api.upsert(vectors, [str(i) for i in range(100)])).consistency_token
        await api.search(vectors[:1], consistency_token=token)
        assert all(target.min_seqno for target in under.nodes["n1"].searches[-1].targets)
        for bad, into in ((token, "other"), (b"\xff", "c"), (b"\x00\x01", "c")):
            error = await refused(api.search(vectors[:1], into, consistency_token=bad))
            assert (error.reason, error.field) == ("INVALID_FIELD", "consistency_token")


async def test_answers_that_do_not_fit_together_are_asked_for_one_by_one(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.nodes["n1"].queries_max = 1
        answers = await asyncio.gather(*(api.search(vectors[i : i + 1], k=1) for i in range(30)))
        assert [ids_of(answer)[0][0] for answer in answers] == [f"{i:03}" for i in range(30)]
        assert (await refused(api.search(vectors[:2]))).reason == "RESPONSE_TOO_LARGE"


async def test_a_defect_is_reported_without_its_insides(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        search = under.nodes["n1"]._search

        def garbled(request: Any, number: int) -> Any:
            result = search(request, number)
            result.counts = b"123"
            return result

        under.nodes["n1"]._search = garbled  # type: ignore[method-assign]
        found = await api.search(vectors[:1])
        assert {missing.reason for missing in found.coverage.missing} == {"INTERNAL"}


async def test_a_stream_answers_each_request_for_itself(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        vectors = await loaded(api, rng)

        async def requests() -> AsyncIterator[Any]:
            for i in range(100):
                bad = question(vectors[:1], k=0) if i % 10 == 9 else question(vectors[i % 60 : i % 60 + 1], k=1)
                yield search_service_pb2.SearchStreamRequest(request_id=i, request=bad)

        outcomes = {}
        async for response in api.searches.SearchStream(requests(), timeout=TIMEOUT_S):
            assert response.request_id not in outcomes
            outcomes[response.request_id] = response
        assert sorted(outcomes) == list(range(100))
        for number, response in outcomes.items():
            if number == 0 or number % 10 == 9:
                error = errors.from_status(status_pb2.Status.FromString(response.error))
                assert (error.reason, error.field) == ("INVALID_FIELD", "k" if number else "request_id")
            else:
                assert ids_of(response.response) == [[f"{number % 60:03}"]]


async def test_a_message_that_cannot_be_decoded_does_not_end_the_stream(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        good = search_service_pb2.SearchStreamRequest(request_id=5, request=question(vectors[:1], "QQQQ", k=1))
        raw = good.SerializeToString()
        messages = [raw.replace(b"QQQQ", b"Q\xff\xfeQ"), b"\xff\xff", raw.replace(b"\x04QQQQ", b"\x01c", 1)]
        messages[2] = search_service_pb2.SearchStreamRequest(
            request_id=6, request=question(vectors[:1], k=1)
        ).SerializeToString()
        stream = under.channel.stream_stream(
            "/vectorfleet.v1.SearchService/SearchStream",
            response_deserializer=search_service_pb2.SearchStreamResponse.FromString,
        )
        crowded = search_service_pb2.SearchStreamRequest(request_id=7, request={"queries": [{}] * 300_000})
        messages.insert(2, crowded.SerializeToString())
        outcomes = {response.request_id: response async for response in stream(iter(messages), timeout=TIMEOUT_S)}
        assert sorted(outcomes) == [0, 5, 6, 7]
        assert "entries" in errors.from_status(status_pb2.Status.FromString(outcomes[7].error)).message
        error = errors.from_status(status_pb2.Status.FromString(outcomes[5].error))
        assert (error.reason, error.field) == ("INVALID_FIELD", "request.collection")
        assert ids_of(outcomes[6].response) == [["000"]]


async def test_a_stop_ends_streams_after_what_is_under_way(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        call = api.searches.SearchStream(timeout=TIMEOUT_S)
        await call.write(search_service_pb2.SearchStreamRequest(request_id=1, request=question(vectors[:1])))
        assert (await call.read()).request_id == 1
        under.nodes["n1"].gate.clear()
        await call.write(search_service_pb2.SearchStreamRequest(request_id=2, request=question(vectors[:1])))

        async def under_way() -> bool:
            return len(under.nodes["n1"].searches) == 2

        await until(under_way)
        begin = time.monotonic()
        under.stopping.set()
        under.nodes["n1"].gate.set()
        last = await call.read()
        assert (last.request_id, last.WhichOneof("outcome")) == (2, "response")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert errors.from_rpc_error(caught.value).reason == "SHUTTING_DOWN"
        async with asyncio.timeout(TIMEOUT_S):
            await under.router
        assert time.monotonic() - begin < 4, "an idle stream must not hold up the stop"


async def test_a_bulk_stream_is_written_whole_and_in_order(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        await api.create()
        vectors = rng.standard_normal((40, 10, DIM)).astype(np.float32)

        def batch(i: int, name: str = "c") -> Any:
            ids = [f"{i}-{row}" for row in range(9)] + ["same"]
            packed = point_service_pb2.PackedPoints(ids=ids, vectors=vectors[i].tobytes())
            return point_service_pb2.BulkUpsertRequest(collection=name, packed=packed)

        answer = await api.points.BulkUpsert((batch(i) for i in range(40)), timeout=TIMEOUT_S)
        assert answer.upserted == 400
        assert answer.consistency_token
        assert (await api.points.Count(point_service_pb2.CountRequest(collection="c"))).points == 361
        got = await api.points.Get(point_service_pb2.GetRequest(collection="c", ids=["same"], with_vector=True))
        assert got.points[0].vector == vectors[39][9].tobytes(), "the last one sent wins"
        error = await refused(api.points.BulkUpsert(iter([batch(0), batch(1, "other")]), timeout=TIMEOUT_S))
        assert error.field == "collection"
        assert (await refused(api.points.BulkUpsert(iter([]), timeout=TIMEOUT_S))).field == "packed"


async def test_creation_waits_and_says_why() -> None:
    async with fleet("n1") as under:
        api = Api(under)
        under.nodes["n1"].status = cluster_service_pb2.REPLICA_STATUS_LOADING
        waiting = asyncio.create_task(api.create("slow"))

        async def stored() -> bool:
            return "slow" in under.cluster.state.collections

        await until(stored)
        assert not waiting.done()
        under.nodes["n1"].status = cluster_service_pb2.REPLICA_STATUS_SERVING
        await waiting
        assert (await refused(api.create("slow"))).reason == "COLLECTION_EXISTS"


async def test_no_nodes() -> None:
    async with fleet() as under:
        assert (await refused(Api(under).create())).reason == "NO_NODES"


async def test_the_coordinator_is_away(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.cluster.away = True
        assert (await refused(api.create("new"))).reason == "COORDINATOR_UNAVAILABLE"
        assert not (await api.search(vectors[:1])).coverage.missing
        await api.upsert(vectors[:1], ["000"])
        shown = await api.cluster.GetCluster(cluster_service_pb2.GetClusterRequest())
        assert not shown.coordinator_connected


async def test_the_cluster_is_shown_with_its_gaps(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api = Api(under)
        await loaded(api, rng)
        under.nodes["n2"].gate.clear()
        shown = await api.cluster.GetCluster(cluster_service_pb2.GetClusterRequest(), timeout=TIMEOUT_S)
        assert {node.id: node.live for node in shown.nodes} == {"n1": True, "n2": False}
        assert shown.controller == "router-0"
        assert len(shown.shards) == SHARDS
        statuses = {replica.status for shard in shown.shards for replica in shard.replicas if replica.node == "n2"}
        assert statuses == {cluster_service_pb2.REPLICA_STATUS_UNREACHABLE}


async def test_a_node_that_lost_its_lease_is_still_asked(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api = Api(under)
        vectors = await loaded(api, rng)
        under.cluster.change(nodes={})
        assert not (await api.search(vectors[:1])).coverage.missing


async def test_pages_of_collections() -> None:
    async with fleet("n1") as under:
        api = Api(under)
        for name in ("b", "a", "c"):
            await api.create(name, shards=1)
        page = await api.collections.ListCollections(collection_service_pb2.ListCollectionsRequest(page_size=2))
        assert [collection.spec.name for collection in page.collections] == ["a", "b"]
        request = collection_service_pb2.ListCollectionsRequest(page_size=2, page_token=page.next_page_token)
        rest = await api.collections.ListCollections(request)
        assert [collection.spec.name for collection in rest.collections] == ["c"]
        assert not rest.next_page_token
