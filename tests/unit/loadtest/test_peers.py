"""Peers of the benchmark: the worker's process, what is left of it, failures that are lines of the table, and the table."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from loadtest import datasets
from loadtest.bare_faiss import Parameters
from loadtest.peers import catalogue, environments, measuring, tables
from loadtest.peers.catalogue import Entry
from loadtest.peers.contract import PeerError, outcome, scratch_files
from loadtest.peers.measuring import Answered, Failed, Measured
from loadtest.peers.session import worker
from loadtest.peers.tuning import Tuned
from loadtest.processes import family
from loadtest.speed import Answered as ClusterAnswered
from loadtest.speed import Found, Loaded

BRUTE = "tests.unit.loadtest.brute_peer:"


def entry(name: str, *, server: bool = True) -> Entry:
    return Entry(name, "none", (), f"{BRUTE}{name}", server=server)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    base, queries, _ = scratch_files(tmp_path)
    np.save(base, rng.standard_normal((1_000, 8), np.float32))
    np.save(queries, rng.standard_normal((20, 8), np.float32))
    return tmp_path


@pytest.mark.parametrize("name", ["BruteByThreads", "BruteByTasks"])
def test_a_worker_builds_and_asks(name: str, folder: Path) -> None:
    with worker(entry(name), Path(sys.executable), folder) as session:
        session.do("start", timeout_s=60)
        assert session.do("build", timeout_s=60)["says"] == "brute force over 100 rows"
        session.do("look", effort=1_000, timeout_s=60)
        asked = session.do("ask", callers=3, size=2, seconds=0.2, warm_up_s=0.0, timeout_s=60)
        rows = np.load(scratch_files(folder)[2])
    base, queries, _ = (np.load(file) for file in scratch_files(folder))
    assert asked["queries_s"] > 0
    assert asked["resident_bytes"] > 0
    assert asked["cpu_ms"]["client"] > asked["cpu_ms"]["servers"]
    answered = np.flatnonzero(rows[:, 0] != -2)
    assert len(answered) > 0
    nearest = np.argsort(((queries[:, None] - base[None]) ** 2).sum(axis=2), axis=1)[:, :10]
    np.testing.assert_array_equal(rows[answered], nearest[answered])


def the_worker(before: list[psutil.Process]) -> psutil.Process:
    """The child that came since, beside the tracker that multiprocessing starts with its first process."""
    came = [one for one in psutil.Process().children() if one not in before]
    (child,) = (one for one in came if "resource_tracker" not in " ".join(one.cmdline()))
    return child


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["BruteByThreads", "Stubborn"])
def test_nothing_of_a_worker_stays(
    name: str, ending: type[BaseException] | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.peers.session.STOP_TIMEOUT_S", 20.0 if name == "BruteByThreads" else 2.0)
    before = psutil.Process().children()
    living: list[psutil.Process] = []
    with contextlib.suppress(KeyboardInterrupt), worker(entry(name), Path(sys.executable), folder) as session:
        session.do("start", timeout_s=60)
        living = family(the_worker(before).pid)
        assert "sleep" in {process.name() for process in living}
        if ending is not None:
            raise ending
    assert [process for process in living if process.is_running()] == []


def test_a_busy_worker_stops_its_store_when_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.peers.session.IDLE_TIMEOUT_S", 0.1)
    killed: list[psutil.Process] = []
    monkeypatch.setattr(psutil.Process, "kill", killed.append)
    before = psutil.Process().children()
    with worker(entry("Busy"), Path(sys.executable), folder) as session:
        session.do("start", timeout_s=60)
        living = family(the_worker(before).pid)
        with pytest.raises(PeerError, match="no answer to 'build' in time"):
            session.do("build", timeout_s=0.1)
    assert [process for process in living if process.is_running()] == killed == []


def test_a_failure_is_one_line_and_the_worker_goes_on(folder: Path) -> None:
    with worker(entry("Broken"), Path(sys.executable), folder) as session:
        session.do("start", timeout_s=60)
        with pytest.raises(PeerError, match=r"^RuntimeError: no room$"):
            session.do("build", timeout_s=60)
        session.do("look", effort=1, timeout_s=60)


def test_the_others_are_measured_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Absent", "BruteByThreads", "Broken")
    monkeypatch.setattr(measuring, "PEERS", {name: entry(name) for name in names} | {"none": entry("NoPython")})
    monkeypatch.setattr(measuring, "TUNING_S", 0.05)
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setattr(measuring, "WARM_UP_S", 0.0)

    def python_of(one: Entry, log: measuring.Log) -> Path:
        if one.title == "NoPython":
            raise PeerError("not installed: ERROR: no matching distribution")
        return Path(sys.executable)

    monkeypatch.setattr(measuring, "python_of", python_of)
    data = datasets.synthetic(1_000, 8, queries=300)
    absent, brute, broken, none = measuring.measure([*names, "none"], data, 0.9, lambda message: None)
    assert isinstance(absent, Failed)
    assert "its_client" in absent.why
    assert isinstance(brute, Measured)
    assert (brute.tuned.reached, brute.tuned.recall >= 0.9) == (True, True)
    assert set(brute.ways) == {way.label for way in measuring.WAYS}
    assert isinstance(broken, Failed)
    assert "no room" in broken.why
    assert none == Failed("none", "not installed: ERROR: no matching distribution")


def test_an_environment_is_made_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ran: list[list[str]] = []

    def run(command: list[str], folder: Path, log: environments.Log) -> None:
        ran.append(command)
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(environments, "_run", run)
    told: list[str] = []
    for packages in (("one>=1",), ("one>=1",), ("one>=2",)):
        python = environments.python_of(Entry("One", "one", packages, "m:C", server=True), told.append)
    assert python == tmp_path / "vectorfleet" / "peers" / "one" / "bin" / "python"
    assert [command[-1] for command in ran if "pip" in command] == ["psutil>=6.0"] * 2
    assert len(told) == 2
    assert "one>=2" in told[1]


def test_an_installation_that_fails_says_what_pip_said(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo 'ERROR: no such release'; echo more >&2; exit 1"]
    with pytest.raises(PeerError, match=r"not installed: ERROR: no such release .*one\.log"):
        environments._run(command, tmp_path / "one", lambda message: None)


@pytest.mark.parametrize("line", [b"", b"loading...", b"[]", b'{"done": 1}', b"{}"])
def test_what_is_no_answer_is_named(line: bytes) -> None:
    with pytest.raises(PeerError, match="answer was due"):
        outcome(line)


def test_every_peer_names_an_adapter_that_is_there() -> None:
    root = Path(environments.__file__).parents[2]
    for one in catalogue.PEERS.values():
        module, _, name = one.adapter.partition(":")
        assert (
            f"class {name}(" in (text := (root / f"{module.replace('.', '/')}.py").read_text())
            or f"class {name}:" in text
        )


def measured(name: str, queries_s: float, recall: float = 0.95) -> Measured:
    way = Answered(queries_s, 1.0, 2.0, 3.0, {"client": 0.5, "servers": 1.0}, 1 << 20, recall)
    return Measured(
        name, f"{name} 1.0", 1_000.0, Tuned(8, recall, recall >= 0.95), {w.label: way for w in measuring.WAYS}
    )


def cluster(queries_s: float) -> Found:
    way = ClusterAnswered(queries_s, 1.0, 2.0, 3.0, 0.95, {"client": 0.2, "router": 0.2, "node-0": 0.3})
    return Found(Parameters(64, 64, 8, 10.0, 10), {w.label: way for w in measuring.WAYS}, 1 << 20, None)


def test_bars_are_against_the_best_server_at_equal_recall(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = [
        measured("pgvector", 100.0),
        measured("milvus-scann", 250.0),
        measured("milvus-ivfpq", 900.0, recall=0.8),  # fast, and finds less
        measured("qdrant-edge", 800.0),  # a library: no server
        Failed("chroma", "its worker ended"),
    ]
    for order in itertools.permutations(outcomes):
        reached = tables.bars(cluster(1_000.0), order)
        assert [(one.value, one.met, "milvus-scann" in one.what) for one in reached] == [(4.0, True, True)] * 2
    assert tables.bars(cluster(1_000.0), outcomes[2:]) == []
    ways = {way: {"queries_s": 2_000.0, "p50_ms": 0.1, "cpu_ms": 0.3} for way in ("one", "threads", "batches")}
    bare = {"recall": 0.95, "train_s": 1.0, "add_points_s": 1_000.0, "ways": ways}
    tables.show("set", Loaded(1.0, 2.0, Parameters(64, 64, 8, 10.0, 10)), 1_000, cluster(1_000.0), bare, outcomes)
    shown = capsys.readouterr().out
    assert "chroma: NOT MEASURED: its worker ended" in shown
    assert "0.8000, not reached" in shown
