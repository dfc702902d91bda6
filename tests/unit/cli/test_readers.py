"""Files of points: what is read of them, from any row on, and what is said of those that are broken."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vectorfleet import _arguments as arguments
from vectorfleet.cli.readers import open_points, read_vectors
from vectorfleet.cli.rows import Fields, FileError, PointFile

VECTORS = np.arange(28, dtype=np.float32).reshape(7, 4)


def fvecs(path: Path, vectors: np.ndarray) -> Path:
    heads = np.full((len(vectors), 1), vectors.shape[1], "<i4").view("<f4")
    path.write_bytes(np.hstack((heads, vectors.astype("<f4"))).tobytes())
    return path


def npy(path: Path, vectors: np.ndarray) -> Path:
    np.save(path, vectors)
    return path


def jsonl(path: Path, vectors: np.ndarray) -> Path:
    path.write_text("\n".join(json.dumps({"vector": one.tolist()}) for one in vectors))
    return path


def parquet(path: Path, vectors: np.ndarray) -> Path:
    pq.write_table(pa.table({"vector": pa.array(vectors.tolist(), pa.list_(pa.float32()))}), path, row_group_size=3)
    return path


def parquet_of_doubles(path: Path, vectors: np.ndarray) -> Path:
    pq.write_table(pa.table({"vector": vectors.tolist()}), path)
    return path


WRITERS = {".fvecs": fvecs, ".npy": npy, ".jsonl": jsonl, ".parquet": parquet}


def everything(file: PointFile, first: int = 0, size: int = 3) -> tuple[list[str], np.ndarray]:
    ids: list[str] = []
    vectors = [np.empty((0, file.dim))]
    after = first
    for rows in file.batches(first, size):
        assert 0 < len(rows.ids) <= size
        assert rows.vectors is not None
        assert len(rows.numbers) == len(rows.ids) == len(rows.vectors)
        assert rows.after > after or first == rows.after
        after = rows.after
        ids += rows.ids
        vectors.append(rows.vectors)
    return ids, np.concatenate(vectors)


@pytest.mark.parametrize("suffix", sorted(WRITERS))
@pytest.mark.parametrize("size", [1, 3, 100])
def test_vectors_from_any_row_on(tmp_path: Path, suffix: str, size: int) -> None:
    file = open_points(WRITERS[suffix](tmp_path / f"v{suffix}", VECTORS), Fields(id_prefix="p-"))
    assert (file.rows, file.dim) == (7, 4)
    for first in range(8):
        ids, vectors = everything(file, first, size)
        assert ids == [f"p-{row}" for row in range(first, 7)]
        assert np.array_equal(vectors, VECTORS[first:])


@given(
    vectors=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-9, 9, width=32)
    ),
    suffix=st.sampled_from(sorted(WRITERS)),
    size=st.integers(1, 5),
)
def test_any_vectors_come_back(
    tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray, suffix: str, size: int
) -> None:
    path = WRITERS[suffix](tmp_path_factory.mktemp("any") / f"v{suffix}", vectors)
    assert np.array_equal(everything(open_points(path, Fields()), 0, size)[1], vectors)


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">f4", "<f2", "<i8"])
def test_npy_of_other_numbers(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "v.npy", np.asfortranarray(VECTORS.astype(dtype)))
    assert np.array_equal(everything(open_points(tmp_path / "v.npy", Fields()))[1], VECTORS)


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(FileError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def drain(path: Path, fields: Fields | None = None) -> None:
    for _ in open_points(path, fields or Fields()).batches(0, 2):
        pass


def test_broken_fvecs(tmp_path: Path) -> None:
    path = fvecs(tmp_path / "v.fvecs", VECTORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    refused(lambda: drain(path), "cut short", "row 6")
    path.write_bytes(b"")
    refused(lambda: drain(path), "empty")
    path.write_bytes(b"\xff\xff\xff\xff" + whole)
    refused(lambda: drain(path), "dimension -1")
    path.write_bytes(b"\xff\xff\xff\x7f" + whole)
    refused(lambda: drain(path), "dimension 2147483647")
    path.write_bytes(whole[:40] + np.int32(9).tobytes() + whole[44:])
    refused(lambda: drain(path), "row 2", "dimension 9")
    refused(lambda: drain(path, Fields(id="id")), "no fields")


def test_broken_npy(tmp_path: Path) -> None:
    path = npy(tmp_path / "v.npy", VECTORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    refused(lambda: drain(path), "cut short")
    path.write_bytes(whole[:20])
    refused(lambda: drain(path), "no .npy file")
    path.write_bytes(b"not numpy")
    refused(lambda: drain(path), "no .npy file")
    path.write_bytes(b"")
    refused(lambda: drain(path), "no .npy file")
    np.save(path, np.array([{"a": 1}], dtype=object))
    refused(lambda: drain(path), "no .npy file")
    np.save(path, np.array([["a", "b"]]))
    refused(lambda: drain(path), "numbers", "<U1")
    np.save(path, np.ones((2, 2), complex))
    refused(lambda: drain(path), "numbers")
    for shape in ((3,), (2, 2, 2), (0, 4), (4, 0)):
        np.save(path, np.ones(shape))
        refused(lambda: drain(path), "shape (rows, dim)")
    with path.open("wb") as file:
        np.savez(file, a=VECTORS)
    refused(lambda: drain(path), "archive")


def test_jsonl_fields(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"id": "a", "vector": [1, 2.5], "colour": "red", "none": null}\n\n'
        '{"id": 7, "vector": [3, 4], "payload": {"n": 1}, "text": "kept"}\r\n'
    )
    (rows,) = open_points(path, Fields()).batches(0, 10)
    assert (rows.ids, list(rows.numbers), rows.after) == (["a", "7"], [0, 2], 3)
    assert rows.vectors is not None
    assert rows.vectors.tolist() == [[1, 2.5], [3, 4]]
    assert rows.payloads == [{"colour": "red"}, {"n": 1, "text": "kept"}]
    (rows,) = open_points(path, Fields(payload=("colour",))).batches(1, 10)
    assert (rows.ids, rows.payloads) == (["7"], [None])


def test_jsonl_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"_id": "a", "title": "T", "text": "words", "metadata": {}}\n{"_id": "b", "title": "", "text": "more"}\n'
    )
    file = open_points(path, Fields())
    assert file.dim == 0
    (rows,) = file.batches(0, 10)
    assert (rows.ids, rows.texts, rows.vectors) == (["a", "b"], ["words", "more"], None)
    assert rows.payloads == [{"title": "T", "metadata": {}}, {"title": ""}]
    (rows,) = open_points(path, Fields(texts=("title", "text"))).batches(0, 10)
    assert rows.texts == ["T words", "more"]
    refused(lambda: open_points(path, Fields(texts=("title",))), "--payload-field")
    rows = next(iter(open_points(path, Fields(texts=("title",), payload=("metadata",))).batches(0, 1)))
    assert rows.texts == ["T"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["empty"]),
        ([""], ["empty"]),
        (["{"], ["line 1", "not JSON"]),
        (['{"vector": [1]}', "nonsense"], ["line 2", "not JSON"]),
        (['{"vector": [1]}', "", "[1]"], ["line 3", "no JSON object"]),
        (['{"a": 1}'], ["no field holds vectors or texts", "a"]),
        (['{"vector": "x"}'], ["line 1", "no list of numbers"]),
        (['{"vector": []}'], ["line 1", "no list of numbers"]),
        (['{"vector": [1, 2]}', '{"vector": [1]}'], ["line 2", "1 components", "2"]),
        (['{"vector": [1, 2]}', '{"vector": [1, "a"]}'], ["line 2", "no list of numbers"]),
        (['{"vector": [1, 2]}', '{"vector": [1, null]}'], ["line 2", "no list of numbers"]),
        (['{"vector": [1, 2]}', '{"vector": [[1], [2]]}'], ["line 2", "no list of numbers"]),
        (['{"vector": [1, 2]}', '{"other": 1}'], ["line 2", "no list of numbers"]),
        (['{"id": "a", "vector": [1]}', '{"vector": [1]}'], ["line 2", "id", "missing"]),
        (['{"id": 1.5, "vector": [1]}'], ["line 1", "neither a text nor an integer"]),
        (['{"id": true, "vector": [1]}'], ["line 1", "truth value"]),
        (['{"text": "a"}', '{"text": 5}'], ["line 2", "no text"]),
        (['{"text": "a"}', "{}"], ["line 2", "missing"]),
        (['{"text": "a"}', '{"text": ""}'], ["line 2", "empty"]),
    ],
)
def test_broken_jsonl(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    refused(lambda: drain(path), str(path), *words)


def test_jsonl_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"vector": [1]}\n{"vector": [1], "a": "\xff"}\n')
    refused(lambda: drain(path), "line 2", "not JSON")
    path.write_bytes(b"[" * 200_000)
    refused(lambda: drain(path), "line 1", "not JSON")


def test_fields_that_do_not_exist(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", VECTORS)
    for fields in (Fields(id="x"), Fields(vector="x"), Fields(texts=("x",)), Fields(payload=("x",))):
        refused(lambda fields=fields: open_points(path, fields), "no field 'x'", "vector")  # type: ignore[misc]
    refused(lambda: open_points(path, Fields(vector="vector", texts=("vector",))), "one kind")


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16()), pa.list_(pa.int32())]
)
def test_parquet_fields(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "p.parquet"
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    if pa.types.is_float16(kind.value_type):
        vectors = [[np.float16(one) for one in vector] for vector in vectors]
    columns = {
        "id": [10, 11, 12],
        "embedding": pa.array(vectors, kind),
        "colour": ["red", None, "blue"],
        "n": [1, 2, 3],
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    file = open_points(path, Fields(payload=("colour",)))
    (first, second) = file.batches(1, 1)
    assert (first.ids, second.ids) == (["11"], ["12"])
    assert first.vectors is not None
    assert first.vectors.tolist() == [[3, 4]]
    assert (first.payloads, second.payloads) == ([None], [{"colour": "blue"}])


def test_parquet_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), path)
    (rows,) = open_points(path, Fields()).batches(0, 10)
    assert (rows.texts, rows.payloads, rows.ids) == (["a", "b"], [{"n": 1}, {"n": 2}], ["0", "1"])


NS = 1_700_000_000_123_456_789


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array([NS], pa.timestamp("ns")), "2023-11-14T22:13:20.123456"),
        (pa.array([NS], pa.timestamp("ns", "UTC")), "2023-11-14T22:13:20.123456+00:00"),
        (pa.array([NS // 10**9], pa.timestamp("s", "+02:00")), "2023-11-15T00:13:20+02:00"),
        (pa.array([datetime.date(2023, 11, 14)]), "2023-11-14"),
        (pa.array([3_723_000_000_001], pa.time64("ns")), "01:02:03"),
        (pa.array([decimal.Decimal("19.90")]), 19.9),
        (pa.array([[1.5, math.nan]]), [1.5, None]),
        (pa.array([{"at": datetime.datetime(2023, 1, 2), "n": math.nan}]), {"at": "2023-01-02T00:00:00", "n": None}),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), [["k", 1]]),
        (pa.array(["red"]).dictionary_encode(), "red"),
        (pa.array([math.nan]), None),
        (pa.array([None], pa.timestamp("ns")), None),
    ],
)
def test_parquet_payloads_are_json(tmp_path: Path, column: pa.Array, told: Any) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"vector": [[1.0]], "x": column}), path)
    (rows,) = open_points(path, Fields()).batches(0, 10)
    assert rows.payloads == [None if told is None else {"x": told}]
    arguments.payload_bytes(rows.payloads, 1)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array(["a", "b"], pa.binary()), ["row 0", "'x' holds bytes"]),
        (pa.array([1.0, math.inf]), ["row 1", "'x' holds an infinite number"]),
        (pa.array([{"a": None}, {"a": b"b"}]), ["row 1", "'x' holds bytes"]),
        (pa.array([1, 2], pa.duration("s")), ["row 0", "'x' holds timedelta"]),
        (pa.array([1, 2**62], pa.timestamp("us")), ["'x' of timestamp[us] cannot be read"]),
        (pa.array([{"a": NS}, None], pa.struct([("a", pa.timestamp("ns"))])), ["'x' of struct", "cannot be read"]),
    ],
)
def test_parquet_payloads_that_are_no_json(tmp_path: Path, column: pa.Array, words: list[str]) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"vector": [[1.0], [2.0]], "x": column, "y": [1, 2]}), path)
    refused(lambda: drain(path), *words, "--payload-field")
    drain(path, Fields(payload=("y",)))


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32(tmp_path: Path) -> None:
    for writer in (parquet_of_doubles, jsonl, npy):
        suffix = {parquet_of_doubles: ".parquet", jsonl: ".jsonl", npy: ".npy"}[writer]
        file = open_points(writer(tmp_path / f"v{suffix}", np.array([[1.0], [1e300]])), Fields())
        assert everything(file)[1].tolist() == [[1.0], [math.inf]], "the client refuses it, and names the row"
    path = tmp_path / "i.jsonl"
    path.write_text('{"vector": [1]}\n{"vector": [1' + "0" * 60 + "]}")
    assert everything(open_points(path, Fields()))[1].tolist() == [[1.0], [math.inf]]
    path.write_text('{"vector": [1]}\n{"vector": [1' + "0" * 400 + "]}")
    refused(lambda: drain(path), "line 2", "beyond what a number can be")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([[1.0, 2.0], [3.0]]), ["row 1", "1 components, not 2"]),
        (pa.array([[1.0, 2.0], None]), ["row 1", "missing"]),
        (pa.array([[1.0, 2.0], [3.0, None]]), ["lacks a component"]),
        (pa.array([["a", "b"]]), ["not of numbers"]),
        (pa.array([[]], pa.list_(pa.float32())), ["not of numbers"]),
        (pa.array([1.0]), ["not of lists"]),
        (pa.array([None], pa.list_(pa.float32())), ["row 0"]),
    ],
)
def test_broken_parquet_columns(tmp_path: Path, column: pa.Array, words: list[str]) -> None:
    pq.write_table(pa.table({"vector": column}), tmp_path / "p.parquet")
    refused(lambda: drain(tmp_path / "p.parquet"), *words)


def test_broken_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", VECTORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    refused(lambda: drain(path), "no Parquet file")
    path.write_bytes(b"")
    refused(lambda: drain(path), "no Parquet file")
    damaged = bytearray(whole)
    damaged[4:60] = bytes(56)
    path.write_bytes(bytes(damaged))
    refused(lambda: drain(path), "cannot be read")
    pq.write_table(pa.table({"vector": pa.array([], pa.list_(pa.float32()))}), path)
    refused(lambda: drain(path), "no rows")


def test_unknown_formats(tmp_path: Path) -> None:
    for name in ("v.csv", "v", "v.npz"):
        (tmp_path / name).write_bytes(b"1,2")
        refused(lambda name=name: open_points(tmp_path / name, Fields()), "not known")  # type: ignore[misc]
    refused(lambda: open_points(tmp_path / "nowhere.npy", Fields()), "nowhere.npy")


def test_queries(tmp_path: Path) -> None:
    assert np.array_equal(read_vectors(fvecs(tmp_path / "q.fvecs", VECTORS)), VECTORS)
    assert np.array_equal(read_vectors(npy(tmp_path / "q.npy", VECTORS)), VECTORS)
    refused(lambda: read_vectors(jsonl(tmp_path / "q.jsonl", VECTORS)), ".npy or .fvecs")
