"""vectorfleet: a sharded vector search cluster over gRPC. This package is its client; `vectorfleet up` starts a cluster.

>>> with Client("127.0.0.1:7700") as client:
...     client.create_collection("films", dim=3)
...     client.upsert("films", ids=["alien"], vectors=[[0, 1, 0]])
...     client.search("films", vectors=[0, 1, 0], k=1).hits
"""

from vectorfleet._aio_client import AsyncClient
from vectorfleet._backups import BackedUpCollection, Backup, RestoredBackup, TransferProgress
from vectorfleet._client import Client
from vectorfleet._keys import ApiKey, NewApiKey
from vectorfleet._models import (
    ClusterInfo,
    Codebook,
    Collection,
    Coverage,
    DeleteResult,
    Hit,
    IndexOptions,
    IndexProgress,
    MissingShard,
    NodeState,
    Point,
    ReplicaState,
    SearchResult,
    ShardState,
    UpsertResult,
)
from vectorfleet._security import Security
from vectorfleet._version import __version__
from vectorfleet.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    VectorfleetError,
)

__all__ = [
    "AlreadyExists",
    "ApiKey",
    "AsyncClient",
    "BackedUpCollection",
    "Backup",
    "Client",
    "ClusterInfo",
    "Codebook",
    "Collection",
    "Coverage",
    "DataLoss",
    "DeadlineExceeded",
    "DeleteResult",
    "FailedPrecondition",
    "Hit",
    "IndexOptions",
    "IndexProgress",
    "InternalError",
    "InvalidRequest",
    "MissingShard",
    "NewApiKey",
    "NodeState",
    "NotFound",
    "PermissionDenied",
    "Point",
    "ReplicaState",
    "ResourceExhausted",
    "RestoredBackup",
    "SearchResult",
    "Security",
    "ShardState",
    "TransferProgress",
    "Unauthenticated",
    "Unavailable",
    "UpsertResult",
    "VectorfleetError",
    "__version__",
]
