"""Deadlines, and that an error which says what was waited for comes before the caller's own clock ends the call."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import grpc
import numpy as np
import pytest

from router import nodes
from router.catalog import Catalog
from router.deadline import MARGIN_MAX_S, Deadline
from router.embedding import Embedder, Purpose
from router.nodes import NodePool
from router.texts import embed_texts
from router.validation import VectorsAndTexts
from tests.unit.router.fake_node import fleet
from vectorfleet import errors
from vectorfleet.cluster.shard_map import CollectionRecord
from vectorfleet.cluster.static import StaticCluster, StaticCoordinator
from vectorfleet.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    point_service_pb2,
    point_service_pb2_grpc,
    types_pb2,
)


@pytest.mark.parametrize(("left_s", "kept_s"), [(0.02, 0.01), (0.3, 0.05), (10.0, 1.0), (86_400.0, MARGIN_MAX_S)])
def test_a_share_of_the_time_is_kept_for_the_way_back(left_s: float, kept_s: float) -> None:
    deadline = Deadline.after(left_s)
    assert deadline.at_s - deadline.answer_by_s() == pytest.approx(kept_s, rel=0.1)


PATIENCE_S = 3600.0
WAITED_S = 2.0


async def test_calls_that_wait_for_a_hanging_node_name_it_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # An hour is kept for the way back, so that how busy this machine is decides nothing; and no probe
    # finds out first that the node hangs.
    monkeypatch.setattr(nodes, "PROBE_INTERVAL_S", PATIENCE_S)
    own = Deadline.answer_by_s
    monkeypatch.setattr(
        Deadline,
        "answer_by_s",
        lambda self: self.at_s - PATIENCE_S + WAITED_S if self.remaining_s() > PATIENCE_S / 2 else own(self),
    )
    async with fleet("n1") as under:
        collections: Any = collection_service_pb2_grpc.CollectionServiceStub(under.channel)
        points: Any = point_service_pb2_grpc.PointServiceStub(under.channel)

        def create(name: str, timeout_s: float) -> Any:
            spec = types_pb2.CollectionSpec(name=name, dim=1, shards=1)
            return collections.CreateCollection(
                collection_service_pb2.CreateCollectionRequest(spec=spec), timeout=timeout_s
            )

        await create("c", 20.0)
        under.nodes["n1"].gate.clear()
        packed = point_service_pb2.PackedPoints(ids=["a"], vectors=np.ones(1, "<f4").tobytes())
        calls = [
            points.Upsert(point_service_pb2.UpsertRequest(collection="c", packed=packed), timeout=PATIENCE_S),
            points.Delete(point_service_pb2.DeleteRequest(collection="c", ids=["a"]), timeout=PATIENCE_S),
            points.Get(point_service_pb2.GetRequest(collection="c", ids=["a"]), timeout=PATIENCE_S),
            points.Scroll(point_service_pb2.ScrollRequest(collection="c"), timeout=PATIENCE_S),
            create("d", PATIENCE_S),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, grpc.aio.AioRpcError) for one in outcomes)
        told = [errors.from_rpc_error(cast(grpc.RpcError, one)) for one in outcomes]
        assert {one.reason for one in told} == {"DEADLINE_EXCEEDED"}
        assert all(one.message.startswith("shard 0 of c on node n1: ") for one in told[:-1])
        assert told[-1].message.startswith("collection 'd' exists, but does not serve yet: shard 0 of d on node n1")


class StuckEmbedder(Embedder):
    async def embed(self, model: str, texts: Any, purpose: Purpose) -> Any:
        await asyncio.Event().wait()


class AnswerNow(Deadline):
    """Far away, but what is waited for must have come by now."""

    def answer_by_s(self) -> float:
        return time.monotonic()


async def test_a_model_that_is_not_loaded_in_time_is_named() -> None:
    embedder = StuckEmbedder()
    catalog = Catalog(StaticCoordinator(StaticCluster()), NodePool(), embedder)
    record = CollectionRecord("c", "u", 1, types_pb2.METRIC_L2, (), embedding_model="m")
    rows = VectorsAndTexts(np.zeros((1, 1), np.float32), (0,), ("text",))
    deadline = AnswerNow.after(3600)
    async with asyncio.timeout(20):
        with pytest.raises(errors.DeadlineExceeded, match="model 'm' is still being loaded"):
            await catalog.create(types_pb2.CollectionSpec(name="c", embedding_model="m"), deadline)
        with pytest.raises(errors.DeadlineExceeded, match="model 'm' did not come to these texts"):
            await embed_texts(embedder, rows, record, Purpose.DOCUMENT, lambda row: "", deadline)
