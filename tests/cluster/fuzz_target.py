"""The cluster that is fuzzed: what it holds, how it is asked, and how what requests made goes again."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import grpc
import numpy as np

import vectorfleet
from tests.cluster.sound_requests import DIM, IDS, STILL
from vectorfleet import limits
from vectorfleet.local import LocalCluster
from vectorfleet.rpc_options import CHANNEL_OPTIONS
from vectorfleet.telemetry.slow import THRESHOLD_DEFAULT_MS
from vectorfleet.v1 import cluster_service_pb2, cluster_service_pb2_grpc, point_service_pb2, point_service_pb2_grpc

ADMIN_KEY: Final = "admin.key"
API_KEY_VARIABLE: Final = "VECTORFLEET_API_KEY_FILE"
_STILL_POINTS: Final = 1_200
"""So many that they are encoded once they are sealed."""
_ERROR_LINE: Final = re.compile(r"^[-0-9]+ [:,0-9]+ (?:ERROR|CRITICAL) .*", re.MULTILINE)

Points = dict[str, tuple[bytes, bytes]]
"""id → (vector, payload)."""


class Target:
    """A cluster, and where on it each method is asked.

    Attributes:
        metadata: of calls through the router: the credential, where it wants one.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.client = vectorfleet.Client(cluster.address, timeout=30.0)
        key = cluster.data / ADMIN_KEY
        self.metadata = (("authorization", f"Bearer {key.read_text()}"),) if key.exists() else ()
        self._channel = grpc.insecure_channel(cluster.address, options=CHANNEL_OPTIONS)
        self._points = point_service_pb2_grpc.PointServiceStub(self._channel)
        self.pids = {name: process.pid for name, process in cluster.processes.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._channel.close()

    def prepare_once(self, name: str) -> None:
        """Sees to a collection of one shard with a point for each id; to `STILL` with a codebook and many more points."""
        if name in {one.name for one in self.client.list_collections()}:
            return
        index = vectorfleet.IndexOptions(train_points=_STILL_POINTS)
        self.client.create_collection(name, dim=DIM, metric="l2", shards=1, index=index)
        vectors = np.eye(len(IDS), DIM, dtype=np.float32)
        self.client.upsert(name, ids=IDS, vectors=vectors, payloads=[{"id": point} for point in IDS])
        if name == STILL:
            many = np.random.default_rng(1).standard_normal((_STILL_POINTS, DIM), np.float32)
            self.client.upsert(name, ids=[f"still-{number}" for number in range(_STILL_POINTS)], vectors=many)
            self.client.wait_indexed(name, timeout=60.0)

    def place(self, name: str) -> tuple[str, str, int]:
        """The uid of a collection, the node that holds it, and the term of its shard."""
        (shard,) = (shard for shard in self.client.cluster().shards if shard.collection == name)
        node = shard.replicas[0].node
        return self.client.get_collection(name).uid, self.cluster.processes[node].address, shard.term

    def points(self, name: str) -> Points:
        """What a collection holds, byte for byte."""
        request = point_service_pb2.ScrollRequest(collection=name, with_vector=True, page_size=limits.SCROLL_PAGE_MAX)
        page = self._points.Scroll(request, timeout=30.0, metadata=self.metadata)
        assert not page.next_page_token
        return {point.id: (point.vector, point.payload) for point in page.points}

    def remove_what_was_made(self) -> None:
        """Deletes the collections and keys that requests made."""
        for key in self.client.keys.list():
            self.client.keys.revoke(key.id)
        for one in self.client.list_collections():
            if one.name != STILL and not one.name.startswith("for-"):
                self.client.delete_collection(one.name)

    def reset_diagnostics(self) -> None:
        """Has all processes log as they do from their start on."""
        settings = cluster_service_pb2.DiagnosticSettings(
            log_level="info", slow_query_ms=THRESHOLD_DEFAULT_MS, trace_ratio=0.0
        )
        stub = cluster_service_pb2_grpc.ClusterServiceStub(self._channel)
        request = cluster_service_pb2.SetDiagnosticsRequest(settings=settings)
        response = stub.SetDiagnostics(request, timeout=30.0, metadata=self.metadata)
        assert not any(process.error for process in response.processes), response

    def log_lines(self) -> int:
        """Lines in all logs."""
        return sum(content.count("\n") for content in self._logs())

    def logged_errors(self) -> list[str]:
        """What our processes have logged as errors so far; without the tracebacks."""
        return [line for content in self._logs() for line in _ERROR_LINE.findall(content)]

    def _logs(self) -> list[str]:
        return [log.read_text(errors="replace") for log in sorted((self.cluster.data / "logs").glob("*.log"))]


@contextlib.contextmanager
def cluster_with_a_key(data: Path) -> Iterator[LocalCluster]:
    """A cluster of two nodes whose router wants a credential, and an environment that gives it to all clients."""
    data.mkdir(exist_ok=True)
    key = data / ADMIN_KEY
    key.write_text(secrets.token_hex(32))
    os.environ[API_KEY_VARIABLE] = str(key)
    try:
        with LocalCluster(data, nodes=2, router_args=("--admin-key-file", str(key))) as cluster:
            yield cluster
    finally:
        del os.environ[API_KEY_VARIABLE]
