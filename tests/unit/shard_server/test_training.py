"""How much a training may hold in memory, what it does with empty shards, and that it runs once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard_server.codebook_store import CodebookStore, checksum_of
from shard_server.peers import Peers
from shard_server.threads import WorkPool
from shard_server.training import Training, sample_limits
from tests.unit.shard_server.fake_replica import collection
from vectorfleet.errors import InvalidRequest, Unavailable
from vectorfleet.internal.v1 import shard_service_pb2 as pb

RECORD = collection("u1", ["n1", "n2", "n3"], dim=2)


class FakePeers(Peers):
    """Shard s holds `rows[s]` points, each component equal to s."""

    def __init__(self, *rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.asked: list[int] = []
        self.away = False

    async def sample(self, address: str, request: pb.SampleRequest, *, timeout_s: float) -> AsyncIterator[bytes]:
        self.asked.append(request.shard)
        if self.away:
            raise Unavailable(f"{address} is away")
        for _ in range(min(self.rows[request.shard], request.limit)):
            await asyncio.sleep(0)
            yield np.full(2, request.shard, np.float32).tobytes()


class Trainings:
    """A node's trainings with a trainer that notes what it is given."""

    def __init__(self, path: Path, peers: FakePeers) -> None:
        self.pool = WorkPool("training", threads=1, waiting_max=10)
        self.store = CodebookStore(path)
        self.samples: list[list[float]] = []
        trainer: Any = self.train
        self.training = Training(self.store, peers, self.pool, self.pool, trainer)

    def train(self, sample: Any, request: pb.TrainCodebookRequest, record: object) -> bytes:
        self.samples.append(sample[:, 0].tolist())
        return b"codebook of %d" % len(sample)


def request(*limits: int) -> pb.TrainCodebookRequest:
    sources = [pb.SampleSource(shard=shard, address="a:1", limit=limit) for shard, limit in enumerate(limits)]
    return pb.TrainCodebookRequest(collection_uid="u1", version=1, nlist=1, m=1, sources=sources)


async def test_requests_for_one_codebook_share_one_training(tmp_path: Path) -> None:
    peers = FakePeers(3, 9, 1)
    node = Trainings(tmp_path, peers)
    first, second = await asyncio.gather(*(node.training.train(request(2, 0, 4), RECORD) for _ in range(2)))
    assert first == second
    assert first.checksum == checksum_of(b"codebook of 3")
    assert node.samples == [[0.0, 0.0, 2.0]]
    assert peers.asked == [0, 2], "an empty shard is not asked"
    again = await node.training.train(request(9, 9, 9), RECORD)
    assert (again.checksum, again.sampled_points) == (first.checksum, 0)
    node.pool.close()


async def test_it_goes_on_when_its_caller_leaves(tmp_path: Path) -> None:
    node = Trainings(tmp_path, FakePeers(5, 5, 5))
    caller = asyncio.create_task(node.training.train(request(5, 5, 5), RECORD))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert (await node.training.train(request(5, 5, 5), RECORD)).sampled_points == 15
    assert len(node.samples) == 1
    node.pool.close()


async def test_a_failure_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    peers = FakePeers(5, 5, 5)
    node = Trainings(tmp_path, peers)
    peers.away = True
    with pytest.raises(Unavailable):
        await node.training.train(request(5, 5, 5), RECORD)
    with pytest.raises(InvalidRequest, match="no point to train on"):
        await node.training.train(request(0, 0, 0), RECORD)
    assert node.store.versions("u1") == []
    peers.away = False
    assert (await node.training.train(request(5, 5, 5), RECORD)).sampled_points == 15
    node.pool.close()


@pytest.mark.parametrize(
    ("wanted", "points_max", "limits"),
    [
        ([10, 20], 30, [10, 20]),
        ([10, 20], 15, [5, 10]),
        ([2**40, 2**41], 30, [10, 20]),
        ([], 1, []),
    ],
)
def test_samples_are_cut_in_proportion(wanted: list[int], points_max: int, limits: list[int]) -> None:
    assert sample_limits(wanted, points_max) == limits
