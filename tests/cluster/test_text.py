"""Text in, answers out, with the real all-MiniLM-L6-v2: the router embeds, and the payload keeps the text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import vectorfleet
from vectorfleet.local import LocalCluster

TEXTS = {
    "bread": "Knead the dough, let it rise for two hours, then bake it in a hot oven.",
    "comet": "The comet's tail of dust and gas always points away from the sun.",
    "engine": "Change the engine oil and its filter every ten thousand kilometres.",
    "tax": "Income from renting out a flat has to be declared to the tax office.",
    "violin": "Rosin on the bow lets the strings of a violin sound.",
}
QUESTIONS = {
    "how do I make a loaf?": "bread",
    "why does a shooting star have a tail": "comet",
    "maintenance of my car": "engine",
    "what do landlords owe the state": "tax",
    "musical instruments": "violin",
}


@pytest.fixture
def library(client: vectorfleet.Client, name: str, model_path: str) -> str:
    """A collection of five texts."""
    made = client.create_collection(name, embedding_model=model_path, shards=2)
    assert (made.dim, made.metric, made.embedding_model) == (384, "cosine", model_path)
    payloads = [{"topic": topic} for topic in TEXTS]
    assert client.upsert(name, ids=list(TEXTS), texts=list(TEXTS.values()), payloads=payloads).upserted == len(TEXTS)
    return name


def test_questions_find_their_texts(client: vectorfleet.Client, library: str) -> None:
    found = client.search(library, texts=list(QUESTIONS), k=3, with_payload=True)
    assert found.coverage.complete
    assert found.ids[:, 0].tolist() == list(QUESTIONS.values())
    for hits in found.hits:
        assert 0 < hits[0].score <= 1
        assert hits[0].payload == {"topic": hits[0].id, "text": TEXTS[hits[0].id]}, "the text is kept for a prompt"
    single = client.search(library, texts="how do I make a loaf?", k=1)
    assert single.ids.tolist() == [["bread"]]


def test_the_same_text_has_the_same_vector(client: vectorfleet.Client, library: str) -> None:
    points = client.get(library, ids=list(TEXTS), with_vector=True)
    for point in points:
        assert point.vector is not None
        assert np.linalg.norm(point.vector) == pytest.approx(1.0, abs=1e-5)
    found = client.search(library, texts=[TEXTS[point.id] for point in points], k=1)
    assert found.ids[:, 0].tolist() == [point.id for point in points]
    assert found.scores[:, 0] == pytest.approx(1.0, abs=1e-5)
    # Vectors may be sent to a collection of texts, too.
    by_vector = client.search(library, vectors=np.stack([point.vector for point in points]), k=1)
    assert by_vector.ids[:, 0].tolist() == [point.id for point in points]


def test_identical_questions_at_the_same_time(cluster: LocalCluster, client: vectorfleet.Client, library: str) -> None:
    questions = [next(iter(QUESTIONS))] * 24 + list(QUESTIONS) * 2
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: client.search(library, texts=[text], k=2), questions))
    for question, answer in zip(questions, answers, strict=True):
        assert answer.ids[0, 0] == QUESTIONS[question]
    same = [answer.scores[0] for question, answer in zip(questions, answers, strict=True) if question == questions[0]]
    np.testing.assert_allclose(same, [same[0]] * len(same), atol=1e-5)


def test_overwritten_text(client: vectorfleet.Client, library: str) -> None:
    client.upsert(library, ids=["violin"], texts=["Glaciers grind valleys into the shape of a U."])
    assert client.search(library, texts=["ice and landscape"], k=1).ids[0, 0] == "violin"
    (point,) = client.get(library, ids=["violin"])
    assert point.payload == {"text": "Glaciers grind valleys into the shape of a U."}


def test_text_needs_a_model(client: vectorfleet.Client, name: str) -> None:
    client.create_collection(name, dim=4)
    for attempt in (
        lambda: client.search(name, texts=["hello"]),
        lambda: client.upsert(name, ids=["a"], texts=["hello"]),
    ):
        with pytest.raises(vectorfleet.FailedPrecondition) as caught:
            attempt()
        assert caught.value.reason == "NO_EMBEDDING_MODEL"
    assert client.count(name) == 0


def test_bad_texts_change_nothing(client: vectorfleet.Client, library: str) -> None:
    before = [(point.id, point.version) for point in client.scroll(library)]
    for text in ("", "x" * (60 * 1024 + 1)):
        with pytest.raises(vectorfleet.InvalidRequest) as caught:
            client.upsert(library, ids=["a", "b"], texts=["fine", text])
        assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "texts[1]")
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        client.upsert(library, ids=["a"], texts=["one"], payloads=[{"text": "another"}])
    assert caught.value.reason == "INVALID_PAYLOAD"
    with pytest.raises(vectorfleet.InvalidRequest) as caught:
        client.create_collection("wrong-width", embedding_model=client.get_collection(library).embedding_model, dim=100)
    assert caught.value.field == "dim"
    assert [(point.id, point.version) for point in client.scroll(library)] == before


def test_vector_searches_are_not_held_up_by_embedding(
    cluster: LocalCluster, client: vectorfleet.Client, library: str, new_name: object
) -> None:
    name = new_name()  # type: ignore[operator]
    client.create_collection(name, dim=2, shards=2)
    client.upsert(name, ids=["a"], vectors=[[1, 2]])
    long_texts = [f"{number} " + "some words about nothing in particular " * 30 for number in range(48)]
    with ThreadPoolExecutor(1) as pool, vectorfleet.Client(cluster.address, timeout=60.0) as other:
        loading = pool.submit(other.upsert, library, ids=list(range(48)), texts=long_texts)
        answered = 0
        while not loading.done():
            assert client.search(name, vectors=[[1, 2]], k=1, timeout=2.0).ids[0, 0] == "a"
            answered += 1
        assert loading.result().upserted == 48
    assert answered > 5
