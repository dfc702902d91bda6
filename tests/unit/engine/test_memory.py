"""What a replica asks of the process's memory: refused before anything is written, given back when it is closed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shard_server.engine import memory
from shard_server.engine.buffer import Buffer
from shard_server.engine.memory import EngineMemory, opening_bytes
from shard_server.engine.replica import Replica
from shard_server.engine.store import StoreMemory
from tests.unit.engine.conftest import SMALL, codebook_for, delete, identity, settle, upsert
from vectorfleet.errors import ResourceExhausted
from vectorfleet.ledger import Ledger
from vectorfleet.v1 import types_pb2

DIM = 8
ROWS = 2_000


def points(first: int, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    return {str(first + row): vector for row, vector in enumerate(vectors)}


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(64 << 20)


@pytest.fixture
def replica(tmp_path: Path, ledger: Ledger) -> Replica:
    return Replica.open(tmp_path / "r", identity(DIM), SMALL, memory=EngineMemory(ledger, StoreMemory(4 << 20)))


def fill(ledger: Ledger) -> None:
    ledger.hold("others", "test", ledger.room_bytes())


@pytest.mark.parametrize("metric", [types_pb2.METRIC_L2, types_pb2.METRIC_COSINE])
@pytest.mark.parametrize("batches", [[1], [255, 1, 1], [1000, 3000], [7] * 200])
def test_a_buffer_grows_by_no_more_than_it_says(metric: int, batches: list[int]) -> None:
    buffer, first = Buffer(DIM, metric), 0
    for count in batches:
        promised, before = buffer.growth(count, 3 * count), buffer.nbytes
        ids = [b"%d" % row for row in range(first, first + count)]
        buffer.append(ids, np.ones((count, DIM), np.float32), [b"{}\n"] * count, first + 1)
        first += count
        assert buffer.nbytes - before <= promised


def test_upserts_are_refused_when_memory_is_full_and_deletes_and_searches_are_not(
    replica: Replica, ledger: Ledger, rng: np.random.Generator
) -> None:
    replica.commit([upsert(points(0, 300, rng))], 1)
    fill(ledger)
    with pytest.raises(ResourceExhausted) as caught:
        replica.commit([upsert(points(300, 300, rng))], 1)
    assert caught.value.reason == "MEMORY_FULL"
    assert replica.applied_seqno == 300, "nothing was written"
    assert replica.trouble == "", "and the store is well"
    replica.commit([delete("0", "1")], 1)
    assert replica.stats().points == 298
    assert replica.search(np.zeros((1, DIM), np.float32), 3).counts.tolist() == [3]
    ledger.hold("others", "test", 0)
    replica.commit([upsert(points(300, 300, rng))], 1)
    replica.close()


def test_merging_and_encoding_wait_for_memory_and_sealing_does_not(
    replica: Replica, ledger: Ledger, rng: np.random.Generator
) -> None:
    for first in range(0, ROWS, 500):
        replica.commit([upsert(points(first, 500, rng))], 1)
        assert replica.seal(1000.0)
    replica.use_codebook(codebook_for(replica))
    fill(ledger)
    segments = replica.stats().segments
    replica.commit([delete("0")], 1)
    while replica.improve(2000.0):  # verification asks for nothing
        pass
    assert not replica.improve(3000.0)
    assert replica.stats().segments == segments == 4
    assert not replica.settled, "it waits"
    ledger.hold("others", "test", 0)
    settle(replica, 4000.0)
    stats = replica.stats()
    assert stats.segments == 1
    assert stats.indexed_points == ROWS - 1
    assert ledger.by_kind[memory.INDEX] == stats.index_bytes > 0
    replica.close()
    assert ledger.used_bytes == 0, "a closed replica holds nothing, and no work has kept its room"


def test_a_merge_without_room_for_all_is_one_of_two(replica: Replica, ledger: Ledger, rng: np.random.Generator) -> None:
    for first in range(0, 4 * ROWS, ROWS):
        replica.commit([upsert(points(first, ROWS, rng))], 1)
        replica.seal(1000.0)
    replica.use_codebook(codebook_for(replica))
    # Room for two segments of the new index, and not for four.
    two = 3 * ROWS * (4 + 8) + memory.WORK_BYTES
    ledger.hold("others", "test", ledger.room_bytes() - two)
    while replica.improve(2000.0) and replica.stats().segments == 4:
        pass
    assert replica.stats().segments == 3
    replica.close()


def test_what_opening_will_take_is_told_by_the_files(
    replica: Replica, ledger: Ledger, tmp_path: Path, rng: np.random.Generator
) -> None:
    assert opening_bytes(tmp_path / "nothing") == memory.REPLICA_BYTES
    replica.commit([upsert(points(0, ROWS, rng))], 1)
    replica.use_codebook(codebook_for(replica))
    settle(replica)
    held = replica.stats().index_bytes
    replica.close()
    assert opening_bytes(tmp_path / "r") == pytest.approx(memory.REPLICA_BYTES + held, abs=4096)
