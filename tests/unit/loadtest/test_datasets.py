"""The readers of data: shapes, repeatability, and a clear word where a set is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest import corpus, datasets


def present(name: str) -> None:
    try:
        datasets.folder(name)
    except datasets.AbsentDataError as absent:
        pytest.skip(str(absent))


def test_an_absent_set_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VECTORFLEET_TEST_DATA", str(tmp_path))
    for read in (datasets.scifact, datasets.wordnet, datasets.siftsmall, datasets.mnist):
        with pytest.raises(datasets.AbsentDataError, match=f"{tmp_path}.*VECTORFLEET_TEST_DATA"):
            read()
    monkeypatch.delenv("VECTORFLEET_TEST_DATA")
    with pytest.raises(datasets.AbsentDataError, match="VECTORFLEET_TEST_DATA names another place"):
        datasets.folder("nothing-of-this-name")


def test_siftsmall_agrees_with_its_published_neighbours() -> None:
    present("siftsmall")
    data = datasets.siftsmall()
    assert (data.base.shape, data.queries.shape) == ((10_000, 128), (100, 128))
    first = np.argsort(((data.base - data.queries[7]) ** 2).sum(axis=1), kind="stable")[:5]
    assert first.tolist() == datasets.siftsmall_neighbours()[7, :5].tolist()


def test_mnist_agrees_with_its_published_neighbours() -> None:
    present("mnist")
    data = datasets.mnist(queries=10)
    assert (data.base.shape, data.queries.shape) == ((60_000, 784), (10, 784))
    first = np.argsort(((data.base - data.queries[7]) ** 2).sum(axis=1), kind="stable")[:5]
    assert first.tolist() == datasets.mnist_neighbours()[7, :5].tolist()


def test_scifact_is_whole() -> None:
    present("scifact")
    data = datasets.scifact()
    judged = [name for answers in data.relevant.values() for name in answers]
    assert (len(data.ids), len(data.queries), len(judged)) == (5183, 300, 339)
    assert set(judged) <= set(data.ids)
    assert data.query_ids == sorted(data.relevant, key=int)


def test_a_part_of_scifact_answers_every_claim() -> None:
    present("scifact")
    whole, part = datasets.scifact(), datasets.scifact(texts=400)
    assert len(part.ids) == len(set(part.ids)) == len(part.texts) == 400
    assert {name for answers in whole.relevant.values() for name in answers} <= set(part.ids) < set(whole.ids)
    assert (part.query_ids, part.relevant) == (whole.query_ids, whole.relevant)


def test_wordnet_examples_belong_to_what_was_read() -> None:
    present("wordnet")
    data = datasets.wordnet(2_000)
    assert len(data.ids) == len(set(data.ids)) == len(data.texts) == 2_000
    assert len(data.queries) > 500
    assert {name for answers in data.relevant.values() for name in answers} <= set(data.ids)


def test_synthetic_data_repeats_and_has_low_intrinsic_dimension() -> None:
    data = datasets.synthetic(3_000, 48, queries=50, seed=4)
    again = datasets.synthetic(3_000, 48, queries=50, seed=4)
    np.testing.assert_array_equal(data.base, again.base)
    np.testing.assert_array_equal(data.queries, again.queries)
    assert (data.base.shape, data.queries.shape) == ((3_000, 48), (50, 48))
    assert data.base.dtype == data.queries.dtype == np.float32
    assert not np.array_equal(data.base[:100], datasets.synthetic(3_000, 48, seed=5).base[:100])
    spectrum = np.linalg.svd(data.base - data.base.mean(axis=0), compute_uv=False) ** 2
    assert 4 < spectrum.sum() ** 2 / np.square(spectrum).sum() < 14, "the effective dimension is far below 48"


def test_the_standard_librarys_docstrings() -> None:
    passages = corpus.standard_library()
    names = [passage.name for passage in passages]
    assert len(passages) > 2_000
    assert names == sorted(set(names))
    assert len({passage.text for passage in passages}) == len(passages)
    assert {"argparse", "argparse.ArgumentParser", "json.dumps", "pathlib.Path.read_text"} <= set(names)
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert all(corpus.CHARACTERS_MIN <= len(passage.text) <= corpus.CHARACTERS_MAX for passage in passages)
    assert {passage.kind for passage in passages} == {"module", "class", "function"}
    fewer = corpus.standard_library(500)
    assert len(fewer) == 500
    assert {passage.name for passage in fewer} <= set(names)
