"""A look at the cluster, line by line; and on terminals of all sizes."""

from __future__ import annotations

import os

import pytest

from vectorfleet._models import ClusterInfo, NodeState, ReplicaState, ReplicaStatus, ShardState
from vectorfleet.cli import watching
from vectorfleet.cli.output import cut
from vectorfleet.cli.watching import Look, lines_of, rates_of


def replica(seqno: int, message: str = "", *, primary: bool = True) -> ReplicaState:
    status: ReplicaStatus = "serving"
    numbers = dict.fromkeys(
        ("points", "indexed_points", "buffered_points", "tombstones", "segments", "codebook_version", "disk_bytes",
         "index_bytes", "memory_bytes"), 7,
    )  # fmt: skip
    return ReplicaState(node="n", primary=primary, status=status, message=message, applied_seqno=seqno, **numbers)


def look(at_s: float, *seqnos: int, message: str = "", live: bool = True, connected: bool = True) -> Look:
    shards = tuple(
        ShardState("films", number, 0, 1, 1, (replica(seqno, message), replica(int(1e6 * at_s), primary=False)))
        for number, seqno in enumerate(seqnos)
    )
    node = NodeState("n", "h:1", live, 2, 1 << 20, 0, 1 << 30, "v")
    return Look(at_s, ClusterInfo(5, "router-0", connected, (node,), shards), ())


def test_rates_are_of_primaries_and_from_look_to_look() -> None:
    assert rates_of(look(12.0, 150, 70), look(10.0, 100, 20)) == {"films": "50"}
    assert rates_of(look(12.0, 150), None) == {}
    assert rates_of(look(12.0, 150), look(12.0, 100)) == {}


def test_a_count_that_fell_is_no_rate() -> None:
    assert rates_of(look(12.0, 150, 0), look(10.0, 100, 90)) == {}


def test_what_an_operator_should_look_at_comes_first() -> None:
    lines = lines_of(look(1.0, 1, message="segment 7 is damaged", live=False, connected=False), None)
    assert "NOT REACHABLE" in lines[0]
    assert [line for line in lines if line.startswith("WARNING")] == [
        "WARNING n does not answer, or its lease has lapsed",
        "WARNING films/0 on n: segment 7 is damaged",
    ]
    assert lines.index("WARNING n does not answer, or its lease has lapsed") < lines.index("no collections")
    assert not any("WARNING" in line for line in lines_of(look(1.0, 1), None))


@pytest.mark.parametrize("size", [(40, 6), (1, 1), (500, 500)])
def test_a_look_fits_its_terminal(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching.shutil, "get_terminal_size", lambda: os.terminal_size(size))
    written: list[str] = []
    watching._draw([*lines_of(look(1.0, *range(30)), None), "漢字" * 40, "\x1b[31mred"], written.append, lambda: None)
    plain = "".join(written).replace("\x1b[H", "").replace("\x1b[K", "").replace("\x1b[J", "")
    assert "\x1b" not in plain, "what was stored does not steer the terminal"
    rows = plain.split("\r\n")
    assert len(rows) <= size[1]
    assert all(cut(row, size[0]) == row for row in rows)


def test_wide_letters_are_cut_by_their_columns() -> None:
    assert cut("漢字漢字", 5) == "漢字…"
    assert cut("漢字", 4) == "漢字"
    assert cut("abc", 1) == "…"
