"""What each RPC asks of its caller: one table, and the decision by it. Pure.

An RPC without a row is refused: a test holds the table against all descriptors of the contract, so that a new RPC
cannot be forgotten here. Three rows are not of the contract: health answers everybody, since a kubelet or a load
balancer has no credential and learns nothing but whether this process serves; reflection tells authenticated callers alone,
since a stranger has no use for what runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, Final

from google.protobuf.message import Message

from router.access.principal import Principal
from router.access.scopes import Action


class Needs(Enum):
    """What an RPC asks for besides, or instead of, an action on one collection."""

    NOTHING = "open to everybody"
    CREDENTIAL = "any valid credential"
    COLLECTION = "an action on the collection that the request names"
    CLUSTER = "admin:*"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    needs: Needs
    action: Action = Action.READ
    """On the collection; elsewhere: what kind of call it is, for the audit log."""
    field: str = ""
    """Path of the request's field that names the collection; "": none does."""
    weigh: Callable[[Any], int] | None = None
    """How many points a request brings, or asks for with its queries; None: it counts as a call alone."""

    def collection(self, request: Message) -> str:
        """The collection that a request names; "": this kind of request names none."""
        return str(attrgetter(self.field)(request)) if self.field else ""

    def allows(self, principal: Principal, collection: str) -> bool:
        """The decision."""
        if self.needs is Needs.COLLECTION:
            return principal.scopes.allow(self.action, collection)
        return self.needs is not Needs.CLUSTER or principal.scopes.whole_cluster


def _on(action: Action, field: str, weigh: Callable[[Any], int] | None = None) -> Rule:
    return Rule(Needs.COLLECTION, action, field, weigh)


def _points(request: Any) -> int:
    return len(request.points) + len(request.packed.ids)


_CLUSTER: Final = Rule(Needs.CLUSTER, Action.ADMIN)
_V1: Final = "/vectorfleet.v1."
RULES: Final[dict[str, Rule]] = {
    f"{_V1}CollectionService/CreateCollection": _on(Action.ADMIN, "spec.name"),
    f"{_V1}CollectionService/GetCollection": _on(Action.READ, "name"),
    # The answer shows those collections alone that the caller may read.
    f"{_V1}CollectionService/ListCollections": Rule(Needs.CREDENTIAL),
    f"{_V1}CollectionService/DeleteCollection": _on(Action.ADMIN, "name"),
    f"{_V1}PointService/Upsert": _on(Action.WRITE, "collection", _points),
    f"{_V1}PointService/Delete": _on(Action.WRITE, "collection", lambda request: len(request.ids)),
    f"{_V1}PointService/Get": _on(Action.READ, "collection"),
    f"{_V1}PointService/Scroll": _on(Action.READ, "collection"),
    f"{_V1}PointService/Count": _on(Action.READ, "collection"),
    f"{_V1}PointService/BulkUpsert": _on(Action.WRITE, "collection", lambda request: len(request.packed.ids)),
    f"{_V1}SearchService/Search": _on(Action.READ, "collection", lambda request: len(request.queries)),
    f"{_V1}SearchService/SearchStream": _on(
        Action.READ, "request.collection", lambda message: len(message.request.queries)
    ),
    f"{_V1}ClusterService/GetCluster": Rule(Needs.CLUSTER),
    f"{_V1}ClusterService/CreateBackup": _CLUSTER,
    f"{_V1}ClusterService/RestoreBackup": _CLUSTER,
    f"{_V1}ClusterService/SetDiagnostics": _CLUSTER,
    f"{_V1}ClusterService/GetDiagnostics": _CLUSTER,
    f"{_V1}KeyService/CreateKey": _CLUSTER,
    f"{_V1}KeyService/ListKeys": _CLUSTER,
    f"{_V1}KeyService/RevokeKey": _CLUSTER,
    "/grpc.health.v1.Health/Check": Rule(Needs.NOTHING),
    "/grpc.health.v1.Health/Watch": Rule(Needs.NOTHING),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(Needs.CREDENTIAL),
}
