"""A buffer is sealed while other background work on the same replica goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from shard_server.engine import segment, upkeep
from shard_server.engine.store import Store
from shard_server.engine.upkeep import EngineSettings
from tests.unit.engine.conftest import SMALL, OpenReplica, codebook_for, delete, settle, upsert
from tests.unit.engine.test_replica import vectors
from vectorfleet.errors import ResourceExhausted
from vectorfleet.v1 import types_pb2

TIMEOUT_S = 30.0


@contextlib.contextmanager
def held_while_writing(work: Callable[[], object]) -> Iterator[None]:
    """Runs `work` in a thread that waits before it writes a segment, until the block ends; then to its end."""
    begun, go = threading.Event(), threading.Event()
    failures: list[BaseException] = []
    write = segment.write_segment

    def waiting(*args: object, **kwargs: object) -> object:
        if threading.current_thread() is thread:
            begun.set()
            assert go.wait(TIMEOUT_S)
        return write(*args, **kwargs)  # type: ignore[arg-type]

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "write_segment", waiting)
        thread.start()
        try:
            assert begun.wait(TIMEOUT_S)
            yield
        finally:
            go.set()
            thread.join()
    assert not failures


def test_a_buffer_is_sealed_while_segments_are_merged(open_replica: OpenReplica) -> None:
    replica = open_replica()
    items = list(vectors(400).items())
    for first in range(0, 256, 64):
        replica.commit([upsert(dict(items[first : first + 64]))], term=1)
        assert replica.seal(0.0)
    assert replica.improve(0.0), "verified"
    with held_while_writing(lambda: replica.improve(1.0)):
        replica.commit([delete(*(name for name, _ in items[:10])), upsert(dict(items[256:]))], term=1)
        assert replica.seal(0.0)
        replica.commit([delete(items[300][0], items[20][0])], term=1)
        assert replica.stats().segments == 5
        assert replica.stats().buffered_points == 0
    gone = {name for name, _ in [*items[:10], items[300], items[20]]}
    for again in (replica, None):
        if again is None:
            replica.close()
            again = open_replica()
        assert again.stats().segments == 2
        points, end = again.scan("", 1000, with_vector=True)
        assert end
        assert [(point.id, point.vector) for point in points] == [
            (name, vector.tobytes()) for name, vector in items if name not in gone
        ]
        queries = np.stack([vector for _, vector in items])
        assert {name for name in again.search(queries, 1, exact=True).ids if name in gone} == set()
        numbers = [part.segment.number for part in again._state.segments]
        assert again._state.new_number() > max(numbers)


def test_a_segment_sealed_with_the_last_codebook_finds_it_when_all_others_have_the_next(
    open_replica: OpenReplica,
) -> None:
    # Of a kind whose buffers have no codes: those would keep their codebook.
    replica = open_replica(settings=EngineSettings(seal_points=1024), kind=types_pb2.INDEX_KIND_IVF_PQ)
    items = list(vectors(2200).items())
    replica.commit([upsert(dict(items[:1100]))], term=1)
    replica.use_codebook(codebook_for(replica))
    settle(replica)
    replica.commit([upsert(dict(items[1100:]))], term=1)
    newer = codebook_for(replica, version=2)
    with held_while_writing(lambda: replica.seal(50_000.0)):
        replica.use_codebook(newer)
        assert replica.improve(50_000.0)
        assert list(replica._state.codebooks) == [2]
    assert [part.segment.codebook_version for part in replica._state.segments] == [2, 1]
    queries = np.stack([vector for _, vector in items[1095:1105]])
    assert replica.search(queries, 1, nprobe=8).ids == [name for name, _ in items[1095:1105]]
    settle(replica, 60_000.0)
    assert list(replica._state.codebooks) == [2]


def test_the_store_is_not_opened_again_beneath_a_merge(
    open_replica: OpenReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, entries: object, *, term_changed: bool) -> None:
        raise ResourceExhausted("the node's disk is full", reason="DISK_FULL")

    replica = open_replica()
    items = list(vectors(256).items())
    for first in range(0, 256, 64):
        replica.commit([upsert(dict(items[first : first + 64]))], term=1)
        assert replica.seal(0.0)
    assert replica.improve(0.0), "verified"
    with held_while_writing(lambda: replica.improve(1.0)):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "append", full)
            with pytest.raises(ResourceExhausted):
                replica.commit([delete("00001")], term=1)
        assert not replica.seal(0.0)
        assert replica.trouble
    assert replica.stats().segments == 1
    assert replica.seal(0.0)
    assert not replica.trouble
    assert replica.stats().points == 256


def test_what_is_sealed_late_in_a_pause_is_folded_with_the_rest(open_replica: OpenReplica) -> None:
    replica = open_replica()
    items = list(vectors(6_635).items())
    for first, last in ((0, 6_400), (6_400, 6_469), (6_469, 6_537), (6_537, 6_605)):
        replica.commit([upsert(dict(items[first:last]))], term=1)
        assert replica.seal(0.0)
    while replica.improve(0.0):
        pass
    replica.commit([upsert(dict(items[6_605:]))], term=1)  # too few to be sealed at once: they wait for their age
    settle(replica)
    # Folded without these thirty, the rest would be too large to be written again for their sake.
    assert replica.stats().segments == 1


def test_a_pause_seals_what_is_worth_a_segment_with_codes(open_replica: OpenReplica) -> None:
    replica = open_replica(settings=replace(SMALL, seal_points=4_096))
    replica.commit([upsert(vectors(upkeep.ENCODE_ROWS_MIN))], term=1)
    assert not replica.seal(0.0)
    assert not replica.seal(0.9 * SMALL.idle_s)
    assert replica.seal(SMALL.idle_s)
