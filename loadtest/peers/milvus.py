"""Milvus standalone, the last that came as a wheel, with pymilvus over gRPC: SCANN and IVF_PQ; effort is `nprobe`.

It listens on every interface and takes ports as it finds them: its worker runs in a network of its own.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from milvus import MilvusServer
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema, connections, utility

from loadtest.callers import AskBlocking, Floats, Rows
from loadtest.peers.contract import K

POINTS_A_CALL = 10_000
REORDERED = 10 * K
"""Candidates that SCANN compares again on raw vectors: for each neighbour as many as the cluster's own default."""
TIMEOUT_S = 600.0


class _Milvus(ABC):
    """A collection with its index loaded; each caller is a thread of one client."""

    least, most = 4, 65_536
    index_type: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._server = MilvusServer()
        self._server.set_base_dir(str(folder))
        self._effort = self.least
        self._lists = 0
        self._collection: Any = None

    def start(self) -> None:
        """Unpacks and starts the server, and connects to it."""
        self._server.start()
        connections.connect(host="127.0.0.1", port=self._server.listen_port)

    def build(self, base: Floats) -> None:
        """Writes, seals, indexes, loads."""
        count, dim = base.shape
        self._lists = self.most = max(64, min(1_024, round(4 * count**0.5)))
        fields = [
            FieldSchema("id", DataType.INT64, is_primary=True),
            FieldSchema("vector", DataType.FLOAT_VECTOR, dim=dim),
        ]
        self._collection = Collection("points", CollectionSchema(fields), num_shards=1)
        for start in range(0, count, POINTS_A_CALL):
            part = np.ascontiguousarray(base[start : start + POINTS_A_CALL])
            self._collection.insert([np.arange(start, start + len(part)), list(part)])
        self._collection.flush()
        index = {"index_type": self.index_type, "metric_type": "L2", "params": self.build_parameters(dim)}
        self._collection.create_index("vector", index)
        utility.wait_for_index_building_complete("points", timeout=TIMEOUT_S)
        self._collection.load(timeout=TIMEOUT_S)

    @abstractmethod
    def build_parameters(self, dim: int) -> dict[str, Any]:
        """Of the index, besides its type."""

    def search_parameters(self) -> dict[str, Any]:
        """Of a search."""
        return {"nprobe": self._effort}

    def look(self, effort: int) -> None:
        """Sets `nprobe`."""
        self._effort = effort

    def says(self) -> str:
        """What it is."""
        return (
            f"Milvus {utility.get_server_version()}, {self.index_type}, {self._lists} lists, {self.search_parameters()}"
        )

    def servers(self) -> list[int]:
        """The one process that is all of Milvus."""
        return [self._server.server_proc.pid]

    @contextlib.contextmanager
    def connect(self) -> Iterator[AskBlocking]:
        """Asks through the client that all share."""
        parameters = {"metric_type": "L2", "params": self.search_parameters()}

        def ask(queries: Floats) -> Rows:
            found = self._collection.search(list(queries), "vector", parameters, K, consistency_level="Eventually")
            rows = np.full((len(queries), K), -1, np.int64)
            for row, hits in zip(rows, found, strict=True):
                row[: len(hits.ids)] = hits.ids
            return rows

        yield ask

    def stop(self) -> None:
        """Ends the server."""
        self._server.stop()


class Scann(_Milvus):
    """IVF with 4-bit PQ and the best compared again on raw vectors."""

    index_type = "SCANN"

    def build_parameters(self, dim: int) -> dict[str, Any]:
        """Raw vectors are kept."""
        return {"nlist": self._lists, "with_raw_data": True}

    def search_parameters(self) -> dict[str, Any]:
        """Lists and candidates."""
        return {"nprobe": self._effort, "reorder_k": REORDERED}


class IvfPq(_Milvus):
    """IVF with 8-bit PQ; this release compares nothing again."""

    index_type = "IVF_PQ"

    def build_parameters(self, dim: int) -> dict[str, Any]:
        """A byte for every two dimensions."""
        return {"nlist": self._lists, "m": dim // 2, "nbits": 8}
