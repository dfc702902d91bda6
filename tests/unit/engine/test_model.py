"""The engine against a plain dictionary, over random operations: writes, restarts, sealing, merging, encoding."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from shard_server.engine import buffer, search
from shard_server.engine.index import Codebook, train_codebook
from shard_server.engine.replica import Replica
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import delete, identity, maintain, settle, upsert
from tests.unit.engine.filters import passes
from vectorfleet.v1 import types_pb2

DIM = 6
FILTERS = [
    types_pb2.Filter(field={"path": "seed", "range": {"lt": {"int_value": 5_000}}}),
    types_pb2.Filter(none_of={"filters": [{"field": {"path": "seed", "range": {"gte": {"int_value": 9_000}}}}]}),
    types_pb2.Filter(field={"path": "group", "equals": {"values": [{"int_value": 1}, {"string_value": "two"}]}}),
    types_pb2.Filter(field={"path": "seed", "exists": False}),
]
METRICS = [types_pb2.METRIC_L2, types_pb2.METRIC_DOT, types_pb2.METRIC_COSINE]
ids = st.integers(0, 60).map(lambda number: f"p{number}" if number % 7 else f"ü-{number}")


def vector(seed: int) -> NDArray[np.float32]:
    """A vector that is often equal to another one, so that ties happen."""
    return np.random.default_rng(seed % 40).standard_normal(DIM).astype(np.float32)


def payload(seed: int) -> bytes:
    """A payload in which one field is now a number, now a string."""
    return json.dumps({"seed": seed, "group": [1, "two", [3, "two"]][seed % 3]}).encode()


class Model(RuleBasedStateMachine):
    @initialize(metric=st.sampled_from(METRICS))
    def begin(self, metric: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vectorfleet-model-"))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(buffer, "_CODED_STEP", 32)  # buffers as small as ours get codes, too
        self.identity = identity(DIM, metric)
        self.settings = EngineSettings(seal_points=16, seal_age_s=5.0, idle_s=1.0)
        self.now_s = 0.0
        self.codebook: Codebook | None = None
        self.model: dict[str, tuple[NDArray[np.float32], bytes]] = {}
        self.replica = Replica.open(self.folder, self.identity, self.settings)

    def teardown(self) -> None:
        self.patch.undo()
        self.replica.close()
        shutil.rmtree(self.folder)

    @rule(
        batches=st.lists(st.dictionaries(ids, st.integers(0, 10_000), min_size=1, max_size=12), min_size=1, max_size=3)
    )
    def upsert_group(self, batches: list[dict[str, int]]) -> None:
        while self.replica._state.active.rows > 60:  # or the writer would wait for the sealing
            self.maintain(6.0, 1)
        mutations = []
        for batch in batches:
            payloads = {point_id: payload(seed) for point_id, seed in batch.items() if seed % 3}
            points = {point_id: vector(seed) for point_id, seed in batch.items()}
            mutations.append(upsert(points, payloads))
            self.model.update({point_id: (points[point_id], payloads.get(point_id, b"")) for point_id in batch})
        outcomes = self.replica.commit(mutations, term=1)
        assert [outcome.affected for outcome in outcomes] == [len(batch) for batch in batches]

    @rule(doomed=st.sets(ids, min_size=1, max_size=20))
    def delete_some(self, doomed: set[str]) -> None:
        (outcome,) = self.replica.commit([delete(*sorted(doomed))], term=1)
        assert outcome.affected == len(doomed & self.model.keys())
        for point_id in doomed:
            self.model.pop(point_id, None)

    @rule(seconds=st.sampled_from([0.1, 2.0, 6.0]), units=st.integers(1, 4))
    def maintain(self, seconds: float, units: int) -> None:
        for _ in range(units):
            self.now_s += seconds
            maintain(self.replica, self.now_s)

    @rule()
    def come_to_rest(self) -> None:
        settle(self.replica, self.now_s + 100)
        self.now_s += 100_000

    @precondition(lambda self: len(self.model) >= 20)
    @rule(seed=st.integers(0, 3))
    def train(self, seed: int) -> None:
        content = train_codebook(
            self.replica.sample(1000, seed),
            kind=self.identity.kind,
            metric=self.identity.metric,
            nlist=2,
            m=3,
            seed=seed,
        )
        self.codebook = Codebook.load(content, (self.codebook.version if self.codebook else 0) + 1)
        self.replica.use_codebook(self.codebook)

    @rule(with_codebook=st.booleans())
    def restart(self, with_codebook: bool) -> None:
        self.replica.close()
        self.replica = Replica.open(self.folder, self.identity, self.settings, self.codebook if with_codebook else None)
        if self.codebook:
            self.replica.use_codebook(self.codebook)

    @invariant()
    def answers_as_the_dictionary_does(self) -> None:
        stats = self.replica.stats()
        assert stats.points == len(self.model)
        names = sorted(self.model, key=str.encode)
        points, end = self.replica.scan("", 1000, with_vector=True)
        assert end
        assert [point.id for point in points] == names
        for point in points:
            expected, payload = self.model[point.id]
            assert point.vector == expected.tobytes()
            assert point.payload == payload
        query = vector(7)[None] + np.float32(0.25)
        for k in (3, 100):
            hits = self.replica.search(query, k, exact=True, with_payload=True, with_vector=True)
            assert hits.ids == self.oracle(query[0].astype(np.float64), k)
            assert hits.payloads == [self.model[point_id][1] for point_id in hits.ids]
        approximate = self.replica.search(query, 5)
        assert len(approximate.ids) == len(set(approximate.ids))
        assert set(approximate.ids) <= self.model.keys()
        assert len(approximate.ids) == min(5, len(self.model))
        for wanted in FILTERS:
            self.check_filtered(query, wanted)

    def check_filtered(self, query: NDArray[np.float32], wanted: types_pb2.Filter) -> None:
        """A filtered search finds k points wherever k pass, and with `exact` the nearest."""
        passing = {point_id for point_id, (_, payload) in self.model.items() if passes(wanted, payload)}
        exact = self.replica.search(query, 100, exact=True, wanted=wanted)
        assert exact.ids == [
            point_id for point_id in self.oracle(query[0].astype(np.float64), 100) if point_id in passing
        ]
        assert exact.matching == len(passing)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "EXACT_BYTES", 0)  # through the lists, however few pass
            approximate = self.replica.search(query, 4, nprobe=1, wanted=wanted)
        assert len(approximate.ids) == len(set(approximate.ids)) == min(4, len(passing))
        assert set(approximate.ids) <= passing

    def oracle(self, query: NDArray[np.float64], k: int) -> list[str]:
        def key(point_id: str) -> tuple[np.float32, bytes]:
            wide = self.model[point_id][0].astype(np.float64)
            if self.identity.metric == types_pb2.METRIC_L2:
                return np.float32(np.sqrt(((query - wide) ** 2).sum())), point_id.encode()
            product = query @ wide
            if self.identity.metric == types_pb2.METRIC_COSINE:
                product /= np.linalg.norm(query) * np.linalg.norm(wide)
            return -np.float32(product), point_id.encode()

        return sorted(self.model, key=key)[:k]


Model.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestModel = Model.TestCase
