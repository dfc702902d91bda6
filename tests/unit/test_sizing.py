"""The sizing formula against what it speaks of: the engine's own constants, and the bytes of files that the engine wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import assignment
from shard_server import node_memory
from shard_server.engine import buffer, index, memory, store
from shard_server.engine.replica import Replica
from shard_server.engine.state import ReplicaIdentity
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import maintain
from vectorfleet import limits, sizing
from vectorfleet.internal.v1 import storage_pb2
from vectorfleet.sizing import Demand, Machine, Plan, SizingError, plan
from vectorfleet.v1 import types_pb2

MACHINE = Machine(64 << 30, 2 << 40, 16)
FAST_SCAN = types_pb2.INDEX_KIND_IVF_PQ_FAST_SCAN


def test_the_constants_are_the_servers() -> None:
    settings = EngineSettings()
    assert settings.seal_points == sizing.SEAL_POINTS
    assert settings.seal_bytes == sizing.SEAL_BYTES
    assert settings.segment_bytes_max == sizing.SEGMENT_BYTES_MAX
    assert sizing.WRITE_BYTES_MAX == node_memory.WRITE_BYTES_MAX
    assert sizing.SEARCH_BYTES_MAX == node_memory.SEARCH_BYTES_MAX
    assert sizing.READ_BYTES_MAX == node_memory.READ_BYTES_MAX
    assert sizing.STORE_BYTES_MAX == node_memory.STORE_BYTES_MAX
    assert sizing.SEALING_BYTES_MAX == node_memory.SEALING_BYTES_MAX
    assert sizing.PROCESS_BYTES == node_memory.PROCESS_BYTES
    assert sizing.REPLICA_BYTES == memory.REPLICA_BYTES
    assert sizing.STORE_WRITE_BUFFER_BYTES == store._WRITE_BUFFER_BYTES
    assert sizing.STORE_WAL_BYTES_MAX == 8 * store._WRITE_BUFFER_BYTES
    assert buffer._BYTES_PER_ROW_OF_PYTHON + np.uint64().nbytes == sizing.BUFFERED_ROW_BYTES
    assert sizing.LIST_POINTS_SAMPLED == assignment.LIST_POINTS_SAMPLED
    assert sizing.SAMPLE_POINTS_MIN == assignment.SAMPLE_POINTS_MIN


@pytest.mark.parametrize("nlist", [1, 8, 24, 100, 4096, 65_536])
def test_searches_visit_as_many_lists_as_the_engine_does(nlist: int) -> None:
    assert sizing.default_nprobe(nlist) == index.Codebook(1, "", nlist, 1, b"", None).default_nprobe


@pytest.mark.parametrize(("dim", "metric"), [(16, types_pb2.METRIC_L2), (17, types_pb2.METRIC_COSINE)])
def test_the_bytes_are_those_of_a_real_replica(tmp_path: Path, dim: int, metric: int) -> None:
    """Writes a replica, seals and encodes it, and compares each part of the prediction with its files."""
    faiss.omp_set_num_threads(1)  # threads of OpenMP that wait for one another on a busy machine take seconds
    rows, payload = 5_000, b'{"n":12345}'
    vectors = np.random.default_rng(5).standard_normal((rows, dim), dtype=np.float32)
    ids = [f"point-{number:010}" for number in range(rows)]
    demand = Demand(
        rows,
        dim,
        cosine=metric == types_pb2.METRIC_COSINE,
        payload_bytes=len(payload),
        payload_values=1,
        cached=1.0,
        nlist=32,
    )
    found = plan(demand, MACHINE)
    content = index.train_codebook(
        vectors, kind=FAST_SCAN, metric=metric, nlist=found.shape.nlist, m=found.shape.m, seed=1
    )
    identity = ReplicaIdentity("uid", 0, dim, metric, FAST_SCAN)
    replica = Replica.open(tmp_path, identity, replace(EngineSettings(), seal_points=rows, idle_s=0.0))
    upsert = storage_pb2.UpsertBatch(ids=ids, vectors=vectors.tobytes(), payloads=[payload] * rows)
    replica.commit([storage_pb2.Mutation(upsert=upsert)], 1)
    replica.use_codebook(index.Codebook.load(content, 1))
    while maintain(replica, 1e9):
        pass
    stats = replica.stats()
    files = {path.name: path.stat().st_size for path in (tmp_path / "segments").rglob("*") if path.is_file()}
    replica.close()
    assert stats.segments == 1
    assert stats.indexed_points == rows

    disk = {item.name: item.bytes for item in found.disk}
    assert files["vectors"] + files.get("lengths", 0) == pytest.approx(disk["raw vectors"], rel=0.001)
    assert files["ids"] + files["hashes"] == pytest.approx(disk["ids and their hashes"], rel=0.001)
    assert files["terms"] - 512 <= disk["values of payloads, for filters"], "one value that all rows share is less"
    # Lists end anywhere within a block: the average is half a block. The file has the PQ's centroids besides.
    centroids = 16 * 4 * found.shape.m * math.ceil(dim / found.shape.m)
    assert stats.index_bytes - centroids == pytest.approx(disk["codes"], rel=0.03)
    assert stats.index_bytes / rows == pytest.approx(found.index_bytes_a_vector, rel=0.06)


def fits(found: Plan) -> bool:
    usable = found.machine.memory_bytes * sizing.MEMORY_USABLE
    return found.memory_bytes <= usable and found.volume_bytes <= found.machine.disk_bytes


@given(
    st.builds(
        Demand,
        points=st.integers(1, 10**10),
        dim=st.integers(1, limits.DIM_MAX),
        replicas=st.integers(1, 3),
        cosine=st.booleans(),
        cached=st.floats(0, 1),
        payload_bytes=st.integers(0, 4096),
        id_bytes=st.integers(1, 256),
    )
)
def test_a_plan_is_the_smallest_that_fits(demand: Demand) -> None:
    largest = sizing._at(demand, MACHINE, limits.SHARDS_MAX)
    if not fits(largest):
        with pytest.raises(SizingError, match=f"even {limits.SHARDS_MAX:,} nodes"):
            plan(demand, MACHINE)
        return
    found = plan(demand, MACHINE)
    assert fits(found)
    assert found.nodes >= demand.replicas
    if found.nodes > demand.replicas:
        assert not fits(sizing._at(demand, MACHINE, found.nodes - 1))


def test_more_of_anything_never_needs_fewer_nodes() -> None:
    base = Demand(10**8, 768)
    nodes = plan(base, MACHINE).nodes
    for more in ({"points": 10**9}, {"replicas": 2}, {"cached": 1.0}, {"dim": 1536}, {"payload_bytes": 20_000}):
        assert plan(replace(base, **more), MACHINE).nodes >= nodes
    assert plan(replace(base, points=10**9), MACHINE).nodes > nodes


def test_given_shards_are_spread_over_no_more_nodes_than_there_are_replicas() -> None:
    found = plan(Demand(10**8, 768, shards=8), MACHINE)
    assert (found.shards, found.nodes) == (8, 1)
    with pytest.raises(SizingError, match="even 1 nodes with 1 shards need"):
        plan(Demand(10**9, 768, shards=1), MACHINE)


def test_too_much_for_any_number_of_nodes_says_what_to_change() -> None:
    with pytest.raises(SizingError, match=r"memory each.*--node-memory"):
        plan(Demand(10**6, 128), Machine(1 << 30, 1 << 40, 4))
    with pytest.raises(SizingError, match=r"disk each.*--node-disk"):
        plan(Demand(10**6, 128), Machine(64 << 30, 1 << 29, 4))


@pytest.mark.parametrize(
    "wrong", [{"points": 0}, {"dim": 0}, {"dim": 4097}, {"replicas": 0}, {"cached": 1.5}, {"m": 129}, {"shards": 1025}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SizingError, match=f"^{next(iter(wrong))} must be"):
        plan(replace(Demand(1000, 128), **wrong), MACHINE)
