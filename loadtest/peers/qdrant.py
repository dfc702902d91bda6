"""Qdrant's engine in the worker's own process (qdrant-edge): HNSW, effort is `hnsw_ef`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import qdrant_edge as edge

from loadtest.callers import AskBlocking, Floats, Rows
from loadtest.peers.contract import K

POINTS_A_CALL = 5_000
M, EF_CONSTRUCT = 16, 100


class QdrantEdge:
    """One shard with its graph built; each caller is a thread."""

    least, most = 10, 2_000

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._shard: edge.EdgeShard | None = None
        self._parameters = edge.SearchParams()
        self._effort = 0

    def start(self) -> None:
        """It is in this process."""

    def build(self, base: Floats) -> None:
        """Writes, then has the optimizer build the graph."""
        graph = edge.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCT, full_scan_threshold=10)
        self._shard = edge.EdgeShard.create(
            str(self._folder),
            edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(size=base.shape[1], distance=edge.Distance.Euclid),
                hnsw_config=graph,
                optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1_000, default_segment_number=1),
            ),
        )
        for start in range(0, len(base), POINTS_A_CALL):
            part = base[start : start + POINTS_A_CALL].tolist()
            points = [edge.Point(id=start + at, vector=vector) for at, vector in enumerate(part)]
            self._shard.update(edge.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self._shard.flush()

    def look(self, effort: int) -> None:
        """Sets `hnsw_ef`."""
        self._effort = effort
        self._parameters = edge.SearchParams(hnsw_ef=effort)

    def says(self) -> str:
        """What it is."""
        version = metadata.version("qdrant-edge-py")
        return f"qdrant-edge {version}, HNSW m {M}, ef_construct {EF_CONSTRUCT}, hnsw_ef {self._effort}"

    def servers(self) -> list[int]:
        """None: it is in this process."""
        return []

    @contextlib.contextmanager
    def connect(self) -> Iterator[AskBlocking]:
        """Asks the shard; many queries in one planned batch."""
        shard = self._shard
        assert shard is not None, "built before it is asked"

        def request(query: Floats) -> edge.QueryRequest:
            return edge.QueryRequest(limit=K, query=edge.Query.Nearest(query.tolist()), params=self._parameters)

        def ask(queries: Floats) -> Rows:
            if len(queries) == 1:
                answers = [shard.query(request(queries[0]))]
            else:
                answers = shard.query_batch(edge.QueryBatchRequest([request(query) for query in queries]))
            rows = np.full((len(queries), K), -1, np.int64)
            for row, hits in zip(rows, answers, strict=True):
                row[: len(hits)] = [hit.id for hit in hits]
            return rows

        yield ask

    def stop(self) -> None:
        """Closes the shard."""
        if self._shard is not None:
            self._shard.close()
