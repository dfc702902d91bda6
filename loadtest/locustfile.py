"""Load from locust: users who search, write, or do both, each with a connection of its own.

    locust -f loadtest/locustfile.py --host 127.0.0.1:7700 [SearchUser | UpsertUser | MixedUser]

Opens locust's page on port 8089; with `--headless -u 50 -r 10 -t 60s --csv out` it needs none. The collection is made and
filled as locust starts, unless it exists. `loadtest/locust_steps.py` adds users in steps. docs/performance.md
tells how to run it from many machines.

Locust runs its users as greenlets. gRPC must be told so before anything of it is used: hence the first lines.
"""

# ruff: noqa: E402 (see above)

from __future__ import annotations

import grpc.experimental.gevent as grpc_gevent

grpc_gevent.init_gevent()

import time
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
from locust import User, between, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

import vectorfleet
from loadtest.datasets import synthetic

POINTS_A_CALL = 1_000
TIMEOUT_S = 30.0


class IncompleteAnswerError(Exception):
    """An answer did not speak for all shards: counted as a failure."""


@events.init_command_line_parser.add_listener
def _arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("vectorfleet")
    group.add_argument("--collection", default="locust", help="made and filled unless it exists (default: locust)")
    group.add_argument("--points", type=int, default=100_000, help="vectors to fill it with (default: 100000)")
    group.add_argument("--dim", type=int, default=128, help="of the vectors (default: 128)")
    group.add_argument("--hits", type=int, default=10, help="hits of a search (default: 10)")
    group.add_argument("--queries", type=int, default=1, help="queries of a search (default: 1)")
    group.add_argument("--upserts", type=int, default=100, help="points of an upsert (default: 100)")


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    """Makes and fills the collection; once, where there are workers."""
    given = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner) or given is None:
        return
    with vectorfleet.Client(_address(environment), timeout=TIMEOUT_S) as client:
        try:
            client.create_collection(given.collection, dim=given.dim, metric="l2")
        except vectorfleet.AlreadyExists:
            return
        base = synthetic(given.points, given.dim, queries=1).base
        for first in range(0, len(base), POINTS_A_CALL):
            rows = range(first, min(first + POINTS_A_CALL, len(base)))
            client.upsert(given.collection, ids=rows, vectors=base[rows.start : rows.stop])
        client.wait_indexed(given.collection)


class FleetUser(User):
    """What all users have in common: a connection, vectors of their own, and a report of every call to locust."""

    abstract = True
    host = "127.0.0.1:7700"
    wait_time = between(0.0, 0.01)

    def on_start(self) -> None:
        """Connects."""
        self.given: Namespace = self.environment.parsed_options
        self.client = vectorfleet.Client(_address(self.environment), timeout=TIMEOUT_S)
        # Of the same clusters as what is stored (one seed), with another place to begin for each user.
        self._vectors = synthetic(1, self.given.dim, queries=2_000).queries
        self._at = int.from_bytes(uuid.uuid4().bytes[:4])

    def on_stop(self) -> None:
        """Disconnects."""
        self.client.close()

    def vectors(self, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The next vectors, float32 (count, dim)."""
        rows = np.arange(self._at, self._at + count) % len(self._vectors)
        self._at += count
        return self._vectors[rows]

    def measured(self, name: str, call: Callable[[], int]) -> None:
        """Makes a call, which returns how many results it brought, and tells locust how it went."""
        start_s = time.perf_counter()
        failure: Exception | None = None
        length = 0
        try:
            length = call()
        except (vectorfleet.VectorfleetError, IncompleteAnswerError) as error:
            failure = error
        events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - start_s) * 1e3,
            response_length=length,
            exception=failure,
            context={},
        )

    def search(self) -> None:
        """One search."""

        def call() -> int:
            found = self.client.search(
                self.given.collection, vectors=self.vectors(self.given.queries), k=self.given.hits
            )
            if not found.coverage.complete:
                raise IncompleteAnswerError(
                    f"{found.coverage.missing[0].reason} of {len(found.coverage.missing)} shards"
                )
            return int((found.ids != "").sum())

        self.measured("Search", call)

    def upsert(self) -> None:
        """One upsert of new points."""

        def call() -> int:
            ids = [uuid.uuid4().hex for _ in range(self.given.upserts)]
            return self.client.upsert(self.given.collection, ids=ids, vectors=self.vectors(len(ids))).upserted

        self.measured("Upsert", call)


class SearchUser(FleetUser):
    """Searches."""

    @task
    def searches(self) -> None:
        """Searches."""
        self.search()


class UpsertUser(FleetUser):
    """Writes new points."""

    @task
    def upserts(self) -> None:
        """Writes."""
        self.upsert()


class MixedUser(FleetUser):
    """Nine searches to one write."""

    @task(9)
    def searches(self) -> None:
        """Searches."""
        self.search()

    @task(1)
    def upserts(self) -> None:
        """Writes."""
        self.upsert()


def _address(environment: Environment) -> str:
    return str(environment.host or FleetUser.host).removeprefix("http://")
