"""LanceDB in the worker's own process: IVF_PQ with the best candidates compared again on raw vectors; effort is `nprobes`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfPq

from loadtest.callers import Ask, Floats, Rows
from loadtest.peers.contract import K

REFINE = 10
"""Candidates for each neighbour asked for, compared again: as many as the cluster's own default."""
DIMS_A_CODE = 4


class Lance:
    """One table with its index; each caller is a task."""

    least, most = 1, 4_096

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._effort = self.least
        self._lists = 0
        self._codes = 0

    def start(self) -> None:
        """It is in this process."""

    def build(self, base: Floats) -> None:
        """Writes the table and trains its index."""
        count, dim = base.shape
        self._lists = max(1, int(4 * count**0.5) // 2)
        self._codes = max(codes for codes in range(1, dim // DIMS_A_CODE + 1) if dim % codes == 0)
        self.most = self._lists

        async def run() -> None:
            database = await lancedb.connect_async(str(self._folder))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(base).reshape(-1)), dim)
            written = pa.table({"id": pa.array(np.arange(count)), "vector": vectors})
            table = await database.create_table("points", written)
            index = IvfPq(distance_type="l2", num_partitions=self._lists, num_sub_vectors=self._codes)
            await table.create_index("vector", config=index)
            await table.wait_for_index(["vector_idx"])

        asyncio.run(run())

    def look(self, effort: int) -> None:
        """Sets `nprobes`."""
        self._effort = effort

    def says(self) -> str:
        """What it is."""
        return (
            f"LanceDB {metadata.version('lancedb')}, IVF_PQ, {self._lists} lists, {self._codes} codes, "
            f"refine_factor {REFINE}, nprobes {self._effort}"
        )

    def servers(self) -> list[int]:
        """None: it is in this process."""
        return []

    @contextlib.asynccontextmanager
    async def asking(self, callers: int) -> AsyncIterator[Ask]:
        """Asks the table; several queries in one call."""
        table = await (await lancedb.connect_async(str(self._folder))).open_table("points")

        async def ask(queries: Floats) -> Rows:
            vectors: Any = queries[0] if len(queries) == 1 else list(queries)
            search = table.query().nearest_to(vectors).distance_type("l2").nprobes(self._effort).refine_factor(REFINE)
            found = await search.limit(K).select(["id"]).to_arrow()
            rows = np.full((len(queries), K), -1, np.int64)
            ids = found["id"].to_numpy()
            if len(queries) == 1:
                rows[0, : len(ids)] = ids
                return rows
            of_query = found["query_index"].to_numpy()
            for query in range(len(queries)):
                hits = ids[of_query == query]
                rows[query, : len(hits)] = hits
            return rows

        yield ask

    def stop(self) -> None:
        """Nothing runs."""
