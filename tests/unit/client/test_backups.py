"""Backups through both clients: what is asked, what is told on the way, and what comes of mistakes."""

from __future__ import annotations

from typing import Any

import pytest

import vectorfleet
from tests.unit.client.fake import FakeCluster
from vectorfleet import errors


def test_backups(client: Any, fake: FakeCluster) -> None:
    client.create_collection("films", dim=1)
    seen: list[vectorfleet.TransferProgress] = []
    made = client.create_backup("/backups", on_progress=seen.append)
    assert [(one.shards_done, one.bytes_done) for one in seen] == [(0, 0), (1, 1 << 19), (2, 1 << 20)]
    assert (made.id, made.destination, made.new_bytes) == ("b1", "/backups", 1 << 20)
    assert made.collections == (vectorfleet.BackedUpCollection("films", (3, 4)),)
    assert client.restore_backup("/backups", collections=["films"]).collections == ("films",)
    restored = client.restore_backup("/backups", backup="b1", collections={"films": "movies"})
    assert restored == vectorfleet.RestoredBackup("b1", ("movies",))
    assert (fake.requests[-1].collections[0].collection, fake.requests[-1].collections[0].name) == ("films", "movies")


def test_backups_are_not_tried_again_and_their_mistakes_are_told(client: Any, fake: FakeCluster) -> None:
    fake.fail("CreateBackup", errors.Unavailable("away", reason="DESTINATION_UNAVAILABLE"))
    with pytest.raises(vectorfleet.Unavailable, match="away"):
        client.create_backup("/backups")
    assert fake.calls["CreateBackup"] == 1
    for wrong in ({"collections": "films"}, {"collections": []}, {"collections": [1]}, {"timeout": 0}):
        with pytest.raises(vectorfleet.InvalidRequest):
            client.create_backup("/backups", **wrong)
        with pytest.raises(vectorfleet.InvalidRequest):
            client.restore_backup("/backups", **wrong)
    assert fake.calls["CreateBackup"] == 1

    def stop(progress: vectorfleet.TransferProgress) -> None:
        raise KeyError("the caller's own")

    client.create_collection("films", dim=1)
    with pytest.raises(KeyError):
        client.create_backup("/backups", on_progress=stop)
