"""What tests of all kinds share: seeds that a failure shows, and the promise that no child process outlives the tests."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator, Iterator

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("vectorfleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vectorfleet")

SEED_KEY = pytest.StashKey[int]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: who tests processes waits for a third of the time."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of this test's own: the session's seed and the test's name decide them, not the order of tests."""
    session_seed = int(request.config.getoption("randomly_seed", 0))
    seed = zlib.crc32(f"{session_seed} {request.node.nodeid}".encode())
    request.node.stash[SEED_KEY] = session_seed
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows with a failure the seed that repeats it."""
    report = yield
    if report.failed and SEED_KEY in item.stash:
        seed = item.stash[SEED_KEY]
        report.sections.append(("seed", f"to repeat: pytest -n 0 --randomly-seed={seed} '{item.nodeid}'"))
    return report


@pytest.fixture(scope="session", autouse=True)
def no_child_process_outlives_the_tests() -> Iterator[None]:
    """Set up before every other fixture, hence torn down after them: what runs then was leaked by a test."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    _, alive = psutil.wait_procs([child for child in children if not _pythons_own(child)], timeout=5)
    assert not alive, "leaked child processes: " + ", ".join(_described(child) for child in alive)


def _pythons_own(child: psutil.Process) -> bool:
    # multiprocessing starts it beside the first worker process and ends it when Python ends.
    return "multiprocessing.resource_tracker" in _described(child)


def _described(child: psutil.Process) -> str:
    try:
        return f"{child.pid} {' '.join(child.cmdline())}"
    except psutil.NoSuchProcess:
        return f"{child.pid} (gone)"
