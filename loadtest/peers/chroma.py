"""Chroma's own server on loopback, asked over HTTP: HNSW, effort is `ef_search`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

from loadtest.callers import AskBlocking, Floats, Rows
from loadtest.peers.contract import K, PeerError

PORT = 8_000
"""In a network of its own, any is free."""
START_TIMEOUT_S = 60.0
M, EF_CONSTRUCTION = 16, 100


class Chroma:
    """A collection in a server process; each caller is a thread."""

    least, most = 10, 2_000

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self._effort = 100

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        program = Path(sys.executable).with_name("chroma")
        self._server = subprocess.Popen(
            [str(program), "run", "--path", str(self._folder), "--host", "127.0.0.1", "--port", str(PORT)],
            stdout=sys.stderr,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._connected()
                return
            except Exception as error:  # not there yet; it raises a plain ValueError
                if time.monotonic() > deadline_s or self._server.poll() is not None:
                    raise PeerError(f"the Chroma server does not answer: {error}") from error
                time.sleep(0.2)

    def build(self, base: Floats) -> None:
        """Writes all; the server builds its graph as it takes them."""
        client = self._connected()
        hnsw = {"space": "l2", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": self._effort}
        collection = client.create_collection("points", configuration={"hnsw": hnsw}, embedding_function=None)
        at_once = client.get_max_batch_size()
        for start in range(0, len(base), at_once):
            part = np.ascontiguousarray(base[start : start + at_once])
            collection.add(ids=[str(start + at) for at in range(len(part))], embeddings=part)
        collection.query(query_embeddings=[base[0]], n_results=1, include=[])  # returns when the log is indexed

    def look(self, effort: int) -> None:
        """Changes the collection's `ef_search`, and starts the server anew: an index that it has loaded keeps the old one."""
        self._effort = effort
        collection = self._connected().get_collection("points", embedding_function=None)
        collection.modify(configuration={"hnsw": {"ef_search": effort}})
        self.stop()
        self.start()

    def says(self) -> str:
        """What it is."""
        return (
            f"Chroma {metadata.version('chromadb')}, HNSW max_neighbors {M}, ef_construction {EF_CONSTRUCTION}, "
            f"ef_search {self._effort}"
        )

    def servers(self) -> list[int]:
        """The server."""
        return [self._server.pid] if self._server else []

    @contextlib.contextmanager
    def connect(self) -> Iterator[AskBlocking]:
        """Asks through a client of the caller's own: shared, they answer fewer, and so does the asynchronous one."""
        collection = self._connected().get_collection("points", embedding_function=None)

        def ask(queries: Floats) -> Rows:
            found = collection.query(query_embeddings=queries, n_results=K, include=[])
            rows = np.full((len(queries), K), -1, np.int64)
            for row, hits in zip(rows, found["ids"], strict=True):
                row[: len(hits)] = [int(hit) for hit in hits]
            return rows

        yield ask

    def stop(self) -> None:
        """Ends the server."""
        if self._server is None:
            return
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()

    @staticmethod
    def _connected() -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=PORT)
