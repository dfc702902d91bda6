"""The ids of a merged segment, made of those of its sources."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import xxhash

from shard_server.engine import ids as ids_module
from shard_server.engine.bitmap import LiveRows
from shard_server.engine.ids import Ids, Taken, hashes_parts, ids_parts


def written(sources: list[Taken]) -> Ids:
    content = [np.frombuffer(b"".join(parts(sources)), np.uint8) for parts in (ids_parts, hashes_parts)]
    return Ids.mapped(content[0], content[1], sum(len(rows) for _, rows in sources))


@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 1 << 16])
@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_what_is_kept_of_several_is_as_if_written_anew(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, share: float
) -> None:
    monkeypatch.setattr(ids_module, "_CHUNK_ROWS", chunk_rows)
    rng = np.random.default_rng(3)
    sources, kept = [], []
    for source, count in enumerate((200, 1, 90)):
        # Id 5 stands in each, as that of a row which a later segment has replaced does.
        names = [b"%d-%d" % (source, row) + b"x" * (row % 20) if row != 5 else b"same" for row in range(count)]
        rows = np.flatnonzero(rng.random(count) < share)
        sources.append((Ids.of(names), rows))
        kept += [names[row] for row in rows]
    found, expected = written(sources), Ids.of(kept)
    assert found.many(np.arange(len(found))) == kept
    for name in ("offsets", "utf8", "hashes", "hash_rows"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    unique = [name for name in kept if name != b"same"]
    rows = found.rows_of([*unique, b"absent"], LiveRows.all_of(len(found)))
    assert [kept[row] for row in rows[:-1]] == unique
    assert rows[-1] == -1


def test_an_id_is_found_behind_its_dead_row_and_behind_another_of_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", len)
    one = Ids.of([b"aa", b"bb", b"aa", b"c"])
    live = LiveRows.all_of(4).without(np.asarray([0]))
    assert one.rows_of([b"aa", b"bb", b"c", b"cc"], live).tolist() == [2, 1, 3, -1]


def test_a_merge_holds_a_few_bytes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "_CHUNK_ROWS", 1 << 10)
    rows = 100_000
    names = [b"point-%020d" % row for row in range(2 * rows)]
    sources = [(Ids.of(names[first : first + rows]), np.arange(0, rows, 2)) for first in (0, rows)]
    tracemalloc.start()
    try:
        for parts in (ids_parts, hashes_parts):
            for _ in parts(sources):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / (2 * rows) < 8, "four for the new number of each row, and what a chunk takes"
