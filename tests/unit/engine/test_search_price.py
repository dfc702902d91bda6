"""What a search costs in calls of Python: the same on any machine, and most of what a query alone costs a node."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import numpy as np
import pytest

from shard_server.engine import view
from shard_server.engine.replica import Replica
from shard_server.searching import search_replica
from tests.unit.engine.conftest import OpenReplica, codebook_for, settle, upsert
from vectorfleet.internal.v1 import shard_service_pb2 as pb

DIM = 16
POINTS = 2_000
CALLS_MAX = 90
"""81 when this was written; twice as many before what depends on the view alone was kept with it."""


@pytest.fixture
def replica(open_replica: OpenReplica) -> Replica:
    replica = open_replica(dim=DIM)
    base = np.random.default_rng(0).standard_normal((POINTS, DIM), np.float32)
    replica.commit([upsert({str(row): base[row] for row in range(POINTS)})], 1)
    replica.use_codebook(codebook_for(replica, nlist=32, m=8))
    settle(replica)
    assert [one.codebook.version for one in replica._view.encoded] == [1]
    return replica


def test_calls_of_a_query_alone(replica: Replica) -> None:
    vectors = np.random.default_rng(1).standard_normal((1, DIM), np.float32)
    request = pb.SearchRequest(k=10, query_count=1)

    def search() -> None:
        search_replica(replica, vectors, request, check=lambda: None)

    search()  # the first of a view computes what the others use
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        search()
    finally:
        sys.setprofile(before)
    assert calls.total() <= CALLS_MAX, calls.most_common()


def test_what_depends_on_the_view_alone_is_computed_once(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(view, "Part", lambda *about: made.append(about) or PART(*about))
    replica.commit([upsert({"new": np.ones(DIM, np.float32)})], 1)
    for _ in range(3):
        replica.search(np.ones((2, DIM), np.float32), 3)
    assert len(made) == 2, "a segment and a buffer"
    replica.commit([upsert({"newer": np.ones(DIM, np.float32)})], 1)
    assert replica.search(np.ones((1, DIM), np.float32), 2).ids == ["new", "newer"]


PART = view.Part
