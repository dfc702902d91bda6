"""Payloads and vectors of winners, where the hits of a shard would not fit a message with them."""

from __future__ import annotations

import numpy as np

from tests.unit.router.api import DIM, Api, ids_of, refused
from tests.unit.router.fake_node import Fleet, fleet
from vectorfleet import limits

POINTS = 40


async def loaded(under: Fleet, rng: np.random.Generator) -> tuple[Api, np.ndarray]:
    api = Api(under)
    await api.create()
    vectors = rng.standard_normal((POINTS, DIM)).astype(np.float32)
    payloads = [b'{"n": %d}' % number for number in range(POINTS)]
    await api.upsert(vectors, [f"{number:03}" for number in range(POINTS)], payloads=payloads)
    return api, vectors


async def test_a_large_answer_is_the_same_in_two_rounds(rng: np.random.Generator) -> None:
    async with fleet("n1", "n2") as under:
        api, vectors = await loaded(under, rng)
        asked = {"k": 5, "with_payload": True, "with_vector": True}
        whole = await api.search(vectors[:3], **asked)
        for node in under.nodes.values():
            node.hits_max = 4
        assert await api.search(vectors[:3], **asked) == whole
        assert [hit.payload for hit in whole.results[0].hits[:1]] == [b'{"n": 0}']


async def test_only_what_was_asked_for_is_carried(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api, vectors = await loaded(under, rng)
        under.nodes["n1"].hits_max = 1
        hits = (await api.search(vectors[:1], k=2, with_vector=True)).results[0].hits
        assert [(hit.payload, len(hit.vector)) for hit in hits] == [(b"", 4 * DIM)] * 2


async def test_a_point_deleted_between_the_rounds_is_left_out(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api, vectors = await loaded(under, rng)
        node = under.nodes["n1"]
        before = ids_of(await api.search(vectors[:2], k=3))
        node.hits_max = 1
        lost = before[0][1]
        enter = node._enter

        async def enter_after_a_delete(shard: int | None = None) -> None:
            if shard is not None:  # a fetch
                for points in node.shards.values():
                    points.pop(lost, None)
            await enter(shard)

        node._enter = enter_after_a_delete  # type: ignore[method-assign]
        after = ids_of(await api.search(vectors[:2], k=3, with_payload=True))
        assert after == [[name for name in names if name != lost] for names in before]


async def test_what_fits_no_answer_is_refused(rng: np.random.Generator) -> None:
    async with fleet("n1") as under:
        api, vectors = await loaded(under, rng)
        under.nodes["n1"].hits_max = 1
        for shard in under.nodes["n1"].shards.values():
            for name, (vector, _, version) in shard.items():
                shard[name] = vector, b"x" * (limits.CALL_BYTES_MAX // POINTS + 1), version
        assert (await refused(api.search(vectors[:1], k=POINTS, with_payload=True))).reason == "RESPONSE_TOO_LARGE"
