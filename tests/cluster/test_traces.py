"""One query, seen in every process that it passes: real processes export, a receiver that speaks the real protocol listens."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import vectorfleet
from vectorfleet.cli import main
from vectorfleet.cli.traces import lines_of
from vectorfleet.local import LocalCluster
from vectorfleet.telemetry.receiver import OtlpReceiver, ReceivedSpan

TIMEOUT_S = 60.0
ROUTER_SEARCH = "vectorfleet.v1.SearchService/Search"
NODE_SEARCH = "vectorfleet.internal.v1.ShardService/Search"

CLIENT = """
import sys
import numpy as np
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
import vectorfleet
address, endpoint, name = sys.argv[1:]
provider = TracerProvider(resource=Resource.create({"service.name": "program"}))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
trace.set_tracer_provider(provider)
with vectorfleet.Client(address) as client, trace.get_tracer("program").start_as_current_span("a user's request") as span:
    client.upsert(name, ids=["late"], vectors=np.ones((1, 8), np.float32))
    result = client.search(name, vectors=np.ones(8, np.float32), k=3, with_payload=True)
    assert result.coverage.complete
    print(f"{span.get_span_context().trace_id:032x}")
provider.shutdown()
"""


class Heard:
    """The spans that came, by trace."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[ReceivedSpan] = []

    def take(self, spans: Sequence[ReceivedSpan]) -> None:
        with self._changed:
            self._spans.extend(spans)
            self._changed.notify_all()

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        return [span for span in self._spans if span.trace_id == trace_id]

    def wait_for_k(self, k: str, *names: str) -> None:
        """Waits for spans of a search that asked for so many hits."""

        def there() -> bool:
            found = {span.name for span in self._spans if span.facts.get("vectorfleet.k") == k}
            return found >= set(names)

        with self._changed:
            assert self._changed.wait_for(there, TIMEOUT_S), [span.name for span in self._spans]

    def wait_for(self, trace_id: str, *names: str) -> list[ReceivedSpan]:
        """The spans of a trace, once those of these names are there, each as often as it is named."""

        def there() -> bool:
            found = [span.name for span in self.trace(trace_id)]
            return all(found.count(name) >= names.count(name) for name in names)

        with self._changed:
            assert self._changed.wait_for(there, TIMEOUT_S), [span.name for span in self._spans]
            return self.trace(trace_id)


class Seen:
    """What a program writes on its terminal."""

    def __init__(self, master: int) -> None:
        self._master = master
        self.text = ""

    def wait_for(self, words: str) -> None:
        """Reads until these words come, after all that was read before."""
        fresh = ""
        while words not in fresh:
            ready, _, _ = select.select([self._master], [], [], TIMEOUT_S)
            assert ready, fresh[-2000:]
            fresh += os.read(self._master, 65536).decode(errors="replace")
        self.text += fresh


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[Heard, str]]:
    one = Heard()
    receiver = OtlpReceiver(one.take)
    yield one, f"http://{receiver.start()}"
    receiver.stop()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, heard: tuple[Heard, str]) -> Iterator[LocalCluster]:
    """A cluster that follows its callers' decisions, sends spans at once, and takes every search for slow."""
    options = ("--otlp-endpoint", heard[1], "--trace-ratio", "0", "--log-format", "json", "--slow-query-ms", "0.001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        cluster = LocalCluster(tmp_path_factory.mktemp("traced"), nodes=2, shard_args=options, router_args=options)
        with cluster:
            yield cluster


@pytest.fixture
def films(traced: LocalCluster) -> Iterator[str]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    with vectorfleet.Client(traced.address, timeout=TIMEOUT_S) as client:
        client.create_collection(name, dim=8, shards=4)
        vectors = np.random.default_rng(1).standard_normal((400, 8), np.float32)
        client.upsert(name, ids=range(400), vectors=vectors, payloads=[{"secret": "hunter2"}] * 400)
    return name


def test_one_query_is_seen_in_every_process(traced: LocalCluster, heard: tuple[Heard, str], films: str) -> None:
    program = [sys.executable, "-c", CLIENT, traced.address, heard[1], films]
    done = subprocess.run(program, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    trace_id = done.stdout.strip()
    spans = heard[0].wait_for(
        trace_id, "a user's request", "vectorfleet search", "validate", "merge", "render", "node", "node",
        NODE_SEARCH, NODE_SEARCH, "shard", "shard", "shard", "shard", "compare", "rank", "ids", "payload",
        "commit", "sync", "apply",
    )  # fmt: skip
    print("\n".join(lines_of(spans)))
    by_id = {span.span_id: span for span in spans}

    def ancestors(span: ReceivedSpan) -> list[tuple[str, str]]:
        found = []
        while span.parent_id:
            span = by_id[span.parent_id]
            found.append((span.service, span.name))
        return found

    searches = [span for span in spans if span.name == NODE_SEARCH]
    assert {span.instance for span in searches} == {"node-0", "node-1"}
    router, node, program_ = "vectorfleet-router", "vectorfleet-shard-server", "program"
    for span in searches:
        assert ancestors(span) == [
            (router, "node"), (router, "batch"), (router, ROUTER_SEARCH), (program_, ROUTER_SEARCH),
            (program_, "vectorfleet search"), (program_, "a user's request"),
        ]  # fmt: skip
    for name in ("compare", "rank", "ids", "payload"):
        stages = [span for span in spans if span.name == name]
        assert [ancestors(span)[:2] for span in stages] == [[(node, "shard"), (node, NODE_SEARCH)]] * 4, name
    for span in spans:
        assert span.begun_ns <= span.ended_ns
        parent = by_id.get(span.parent_id)
        if parent is not None:
            assert parent.begun_ns <= span.begun_ns, (span, parent)
            assert span.ended_ns <= parent.ended_ns, (span, parent)
    (sync,) = (span for span in spans if span.name == "sync")
    assert ancestors(sync)[0] == (node, "commit")


def test_a_slow_query_that_nobody_chose_has_a_line_a_trace_and_no_secret(
    traced: LocalCluster, heard: tuple[Heard, str], films: str
) -> None:
    with vectorfleet.Client(traced.address, timeout=TIMEOUT_S) as client:
        client.search(films, vectors=np.ones(8, np.float32), k=7, filter={"secret": "hunter2"}, with_payload=True)
    text = traced.processes["router-0"].log_path.read_text()
    told = [
        one["slow_query"]
        for line in text.splitlines()
        if '"slow_query"' in line and (one := json.loads(line)) and one["slow_query"].get("k") == 7
    ]
    (slow,) = (one for one in told if one["collection"] == films)
    assert slow["filter"] is True
    assert slow["coverage"] == "4/4"
    assert slow["request_id"]
    (batch,) = slow["parts"]
    assert {part["node"] for part in batch["parts"]} == {"node-0", "node-1"}
    assert sum(len(part["shards_us"]) for part in batch["parts"]) == 4
    assert "hunter2" not in text
    heard[0].wait_for(slow["trace_id"], ROUTER_SEARCH, "batch", "node", "node")
    nodes = "".join(traced.processes[name].log_path.read_text() for name in ("node-0", "node-1"))
    assert f'"request_id": "{slow["request_id"]}"' in nodes, "the same id on both sides"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_what_is_logged_and_traced_changes_while_the_processes_run(
    traced: LocalCluster, heard: tuple[Heard, str], films: str
) -> None:
    address = ("--address", traced.address, "--json")
    before = json.loads(run("tune", *address).stdout)["processes"]
    assert [one["process"] for one in before[1:]] == ["node-0", "node-1"]
    assert {one["settings"]["log_level"] for one in before} == {"info"}
    changed = run("tune", *address, "--log-level", "debug", "--slow-query-ms", "60000", "--trace-ratio", "1")
    assert {json.dumps(one["settings"]) for one in json.loads(changed.stdout)["processes"]} == {
        '{"log_level": "debug", "slow_query_ms": 60000.0, "trace_ratio": 1.0}'
    }
    with vectorfleet.Client(traced.address, timeout=TIMEOUT_S) as client:
        client.search(films, vectors=np.ones(8, np.float32), k=11)
    heard[0].wait_for_k("11", ROUTER_SEARCH, NODE_SEARCH)
    assert '"k": 11' not in traced.processes["router-0"].log_path.read_text(), "60 seconds are slow, this was not"
    assert run("tune", *address, "--log-level", "info", "--slow-query-ms", "0.001", "--trace-ratio", "0").exit_code == 0
    refused = run("tune", "--address", traced.address, "--trace-ratio", "7")
    assert refused.exit_code == 2


def test_a_bug_report_has_what_can_be_had_and_says_what_cannot(
    traced: LocalCluster, films: str, tmp_path: Path
) -> None:
    with vectorfleet.Client(traced.address, timeout=TIMEOUT_S) as client:
        client.search(films, vectors=np.ones(8, np.float32), k=5)
    file = tmp_path / "support.tar.gz"
    traced.signal("node-1", signal.SIGSTOP)
    try:
        done = run("debug", "--address", traced.address, str(file))
    finally:
        traced.signal("node-1", signal.SIGCONT)
    assert done.exit_code == 0, done.stderr
    assert "node node-1 could not be gathered" in done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with tarfile.open(file) as archive:
        found = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in archive.getmembers()}
        content = {name: stream.read().decode() for name, stream in found.items() if stream is not None}
    assert "node node-1" in json.loads(content["report.json"])["missing"]
    for process in ("router-0", "node-0"):
        about = json.loads(content[f"{process}/process.json"])
        assert about["versions"]["vectorfleet"] == vectorfleet.__version__
        assert about["configuration"]["log_format"] == "json"
        assert "vectorfleet_" in content[f"{process}/metrics.txt"]
        assert "listens on" in content[f"{process}/log.txt"]
        assert any(
            json.loads(line)["k"] == 5
            for line in content[f"{process}/slow-queries.jsonl"].splitlines()
            if '"k"' in line
        )
    assert json.loads(content["cluster.json"])["shards"]
    assert "hunter2" not in json.dumps(content)


def test_a_view_lives_through_a_router_that_does_not(traced: LocalCluster, films: str) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 40, 0, 0))
    program = [
        sys.executable,
        "-c",
        "from vectorfleet.cli import main; main()",
        "status",
        "--watch",
        "--interval",
        "0.2",
    ]
    watching = subprocess.Popen(
        [*program, "--address", traced.address], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    seen = Seen(master)
    try:
        seen.wait_for(films)
        traced.kill("router-0")
        seen.wait_for("ROUTER UNREACHABLE")
        traced.restart("router-0")
        seen.wait_for("etcd connected")
        watching.send_signal(signal.SIGINT)
        seen.wait_for("\x1b[?25h\x1b[?1049l")
        assert watching.wait(TIMEOUT_S) == 0
        assert "Traceback" not in seen.text
    finally:
        watching.kill()
        watching.wait()
        os.close(master)


def test_a_report_that_cannot_be_written_leaves_nothing(traced: LocalCluster, tmp_path: Path) -> None:
    done = run("debug", "--address", traced.address, str(tmp_path / "absent" / "support.tar.gz"))
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_collector_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    hangs = threading.Event()
    receiver = OtlpReceiver(lambda spans: bool(hangs.wait(TIMEOUT_S)))
    options = ("--otlp-endpoint", f"http://{receiver.start()}", "--trace-ratio", "1")
    cluster = LocalCluster(tmp_path, nodes=1, shard_args=options, router_args=options)
    try:
        with cluster, vectorfleet.Client(cluster.address, timeout=TIMEOUT_S) as client:
            client.create_collection("c", dim=8, shards=1)
            client.upsert("c", ids=range(50), vectors=np.ones((50, 8), np.float32))
            for _ in range(20):  # more spans than the exporter's queue takes
                assert client.search("c", vectors=np.ones(8, np.float32), k=1).coverage.complete
        assert [cluster.processes[name].exit_code for name in ("node-0", "router-0")] == [0, 0], "stopped in time"
    finally:
        hangs.set()
        receiver.stop()
