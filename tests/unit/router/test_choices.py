"""Small pure parts: whether a node is worth a call, tokens, deadlines, the command line."""

from __future__ import annotations

import time

import pytest

from router import tokens
from router.arguments import parse
from router.circuit import PROBES_TO_OPEN, SUSPECT_AFTER_S, Circuit
from router.deadline import Deadline
from vectorfleet.cluster.shard_map import CollectionRecord, ShardAssignment
from vectorfleet.errors import InvalidRequest


def test_a_circuit_opens_after_lost_probes_and_closes_with_an_answer() -> None:
    circuit = Circuit()
    assert not circuit.suspect(1e9), "a node that nobody asked owes no answer"
    circuit.asked(10.0)
    circuit.asked(10.0 + SUSPECT_AFTER_S - 0.01)
    assert not circuit.suspect(10.0 + SUSPECT_AFTER_S - 0.01)
    assert circuit.suspect(10.0 + SUSPECT_AFTER_S), "hasty callers add up: their deadlines prove nothing, silence does"
    for _ in range(PROBES_TO_OPEN):
        assert not circuit.open
        circuit.probe_lost()
    assert circuit.open
    circuit.answered()
    assert not circuit.open
    assert not circuit.suspect(1e9)
    circuit.asked(20.0)
    assert not circuit.suspect(20.0 + SUSPECT_AFTER_S / 2)
    assert circuit.silent_for(SUSPECT_AFTER_S / 2, 20.0 + SUSPECT_AFTER_S / 2)


def test_tokens_name_their_collection_and_its_shards() -> None:
    record = CollectionRecord("c", "u1", 2, 1, tuple(ShardAssignment(n, n, n) for n in range(3)))
    token = tokens.issue("u1", {2: 9, 0: 2**63})
    assert tokens.read(token, record) == {0: 2**63, 2: 9}
    assert tokens.read(b"", record) == {}
    for bad in (b"\xff", b"\x00", b"\x12\x00", tokens.issue("u2", {0: 1}), tokens.issue("u1", {3: 1}), b"x" * 50):
        with pytest.raises(InvalidRequest) as caught:
            tokens.read(bad, record)
        assert caught.value.field == "consistency_token"


@pytest.mark.parametrize(("seconds", "kept_s"), [(10.0, 1.0), (0.3, 0.05), (0.06, 0.03)])
def test_a_margin_is_kept_for_the_answer(seconds: float, kept_s: float) -> None:
    deadline = Deadline.after(seconds)
    assert deadline.at_s - deadline.answer_by_s() == pytest.approx(kept_s, rel=0.1)
    assert deadline.within(1000) == deadline
    assert deadline.within(0.0) < deadline


def test_a_deadline_that_passed() -> None:
    past = Deadline(time.monotonic() - 1)
    assert past.remaining_s() == 0
    assert past.answer_by_s() == past.at_s
    assert Deadline.of_caller(None, 7).remaining_s() == pytest.approx(7, abs=0.5)


def test_the_command_line_and_the_environment() -> None:
    environment = {"VECTORFLEET_ETCD": "h:1", "VECTORFLEET_PORT": "0", "VECTORFLEET_REUSE_PORT": "true"}
    parsed = parse(["--host", "::1"], environment)
    assert (parsed.host, parsed.port, parsed.etcd, parsed.reuse_port) == ("::1", 0, "h:1", True)
    assert parsed.router_id.startswith("router-")
    assert parse(["--etcd", "h:1", "--router-id", "r"], {}).router_id == "r"
    assert not parse(["--etcd", "h:1"], {}).reuse_port


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "--etcd h:1 --port x",
        "--etcd h:1 --port 65536",
        "--etcd h:1 --batches-in-flight 0",
        "--etcd h:1 --log-level x",
    ],
)
def test_a_command_line_that_makes_no_sense(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(wrong.split(), {})
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err
