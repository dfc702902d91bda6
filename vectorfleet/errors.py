"""What can go wrong, said once for both ends of the wire.

    VectorfleetError
    ├── InvalidRequest            INVALID_ARGUMENT      the request is at fault; `field` names where
    ├── NotFound                  NOT_FOUND
    ├── AlreadyExists             ALREADY_EXISTS
    ├── FailedPrecondition        FAILED_PRECONDITION   the system must change first
    ├── Unauthenticated           UNAUTHENTICATED       no valid credential
    ├── PermissionDenied          PERMISSION_DENIED     the caller is known, and may not do this
    ├── ResourceExhausted         RESOURCE_EXHAUSTED    a limit or a full queue; `retry_after_s` where that is known
    ├── Unavailable               UNAVAILABLE           the only one that is retried
    ├── DeadlineExceeded          DEADLINE_EXCEEDED
    ├── DataLoss                  DATA_LOSS
    └── InternalError             INTERNAL              a defect of vectorfleet

Servers raise these; `to_status` turns them into `google.rpc.Status` with `ErrorInfo {reason, domain}` (and `BadRequest`
where a field is at fault, `RetryInfo` where a time is known); `from_rpc_error` turns what a channel raises back into the
same class with the same reason. So a caller catches the class and reads `reason`, which is one of `REASONS`: the table that
docs/errors.md shows (a test holds the two equal). Messages are for people and may change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "vectorfleet"
DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailing metadata under which gRPC carries a `google.rpc.Status`."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One row of the error table: which code a reason travels under, what it means, what the caller does."""

    code: grpc.StatusCode
    meaning: str
    action: str


_C = grpc.StatusCode
REASONS: Final[dict[str, Reason]] = {
    "INVALID_FIELD": Reason(
        _C.INVALID_ARGUMENT, "A field is missing or out of range; the message names it.", "Correct the field."
    ),
    "INVALID_ID": Reason(
        _C.INVALID_ARGUMENT, "A point id is empty, longer than 256 bytes or not valid UTF-8.", "Correct the id."
    ),
    "WRONG_DIMENSION": Reason(
        _C.INVALID_ARGUMENT, "A vector has another dimension than the collection.", "Send dim float32 values."
    ),
    "NOT_FINITE": Reason(
        _C.INVALID_ARGUMENT, "A vector holds NaN or infinity, or is longer than 1e18.", "Correct the vector."
    ),
    "ZERO_VECTOR": Reason(_C.INVALID_ARGUMENT, "A zero vector has no direction, which COSINE needs.", "Leave it out."),
    "INVALID_PAYLOAD": Reason(_C.INVALID_ARGUMENT, "A payload is not a JSON object in UTF-8.", "Send a JSON object."),
    "PAYLOAD_TOO_LARGE": Reason(
        _C.INVALID_ARGUMENT, "A payload is over 64 KiB.", "Keep large data elsewhere and store its address."
    ),
    "INVALID_FILTER": Reason(
        _C.INVALID_ARGUMENT, "A filter is malformed or over a limit; the message says where.", "Correct the filter."
    ),
    "COLLECTION_NOT_FOUND": Reason(_C.NOT_FOUND, "No collection has this name.", "Create it, or correct the name."),
    "COLLECTION_EXISTS": Reason(
        _C.ALREADY_EXISTS, "A collection of this name exists.", "Use it, or take another name."
    ),
    "NO_EMBEDDING_MODEL": Reason(
        _C.FAILED_PRECONDITION,
        "Text was sent to a collection that names no embedding model.",
        "Send vectors, or create the collection with embedding_model.",
    ),
    "EMBEDDING_NOT_INSTALLED": Reason(
        _C.FAILED_PRECONDITION,
        "The router lacks sentence-transformers.",
        "On the router: pip install 'vectorfleet[embed]'.",
    ),
    "EMBEDDING_MODEL_UNAVAILABLE": Reason(
        _C.FAILED_PRECONDITION, "The embedding model cannot be loaded.", "Correct the path or name; see the message."
    ),
    "CLIENT_CLOSED": Reason(
        _C.FAILED_PRECONDITION,
        "The client was closed before its call was answered; a write may have happened.",
        "Make another client; writes are idempotent.",
    ),
    "CREDENTIAL_MISSING": Reason(
        _C.UNAUTHENTICATED,
        "The call carries no API key and no token.",
        "Give the client an api_key or a token.",
    ),
    "CREDENTIAL_INVALID": Reason(
        _C.UNAUTHENTICATED,
        "The API key or token is unknown, revoked, malformed, not signed by a known key, or not for this cluster.",
        "Use another one; the message says what is known.",
    ),
    "CREDENTIAL_EXPIRED": Reason(_C.UNAUTHENTICATED, "The API key or token has expired.", "Get a new one."),
    "PERMISSION_DENIED": Reason(
        _C.PERMISSION_DENIED,
        "The credential's scopes do not allow this; whether the collection exists is not said.",
        "Use a credential with the scope that the message names.",
    ),
    "AUTHENTICATION_OFF": Reason(
        _C.FAILED_PRECONDITION,
        "This router asks nobody for a credential, so it makes no keys.",
        "Start the routers with an admin key, or with --auth required.",
    ),
    "KEY_NOT_FOUND": Reason(_C.NOT_FOUND, "No API key has this id.", "List the keys."),
    "JWKS_UNAVAILABLE": Reason(
        _C.UNAVAILABLE, "The keys that verify tokens cannot be fetched.", "Retry; check the router's --jwks-url."
    ),
    "NOT_A_MEMBER": Reason(
        _C.PERMISSION_DENIED,
        "Only the cluster's own processes may call a shard server; the certificate shown is not one of theirs.",
        "Ask a router.",
    ),
    "STALE_SHARD_MAP": Reason(_C.UNAVAILABLE, "The shard map changed while the call ran.", "Retry."),
    "SHARD_UNAVAILABLE": Reason(
        _C.UNAVAILABLE, "A shard that the call needs cannot be reached.", "Retry; writes are idempotent."
    ),
    "TOO_FEW_SHARDS": Reason(
        _C.UNAVAILABLE, "Fewer shards answered than min_coverage asks for.", "Retry, or accept less coverage."
    ),
    "NO_NODES": Reason(_C.UNAVAILABLE, "No shard server is registered.", "Start one, then retry."),
    "COORDINATOR_UNAVAILABLE": Reason(
        _C.UNAVAILABLE, "etcd cannot be reached; searches and writes go on.", "Retry once etcd is back."
    ),
    "SHUTTING_DOWN": Reason(_C.UNAVAILABLE, "The process is stopping.", "Retry: another process answers."),
    "UNREACHABLE": Reason(
        _C.UNAVAILABLE, "The server cannot be reached at all.", "Check the address and that it runs; retry."
    ),
    "OVERLOADED": Reason(
        _C.RESOURCE_EXHAUSTED,
        "A queue is full, or the answer would come too late; or the client knows so from calls just refused, and has not asked.",
        "Slow down; retry later.",
    ),
    "MEMORY_FULL": Reason(
        _C.RESOURCE_EXHAUSTED,
        "A node has no memory left for what would grow; the message says used, asked and limit.",
        "Delete points, or give the node more memory (--memory-limit).",
    ),
    "RATE_LIMITED": Reason(
        _C.RESOURCE_EXHAUSTED,
        "The caller has used up its calls or points a second on this router.",
        "Wait for as long as RetryInfo says.",
    ),
    "QUOTA_EXCEEDED": Reason(
        _C.RESOURCE_EXHAUSTED,
        "The caller has used up its points a day on this router, or there is no room for another API key.",
        "Wait for as long as RetryInfo says, or ask for more.",
    ),
    "MESSAGE_TOO_LARGE": Reason(_C.RESOURCE_EXHAUSTED, "A message passes 64 MiB.", "Split the call."),
    "RESPONSE_TOO_LARGE": Reason(
        _C.RESOURCE_EXHAUSTED, "The answer would pass 64 MiB.", "Ask for fewer queries, hits, vectors or payloads."
    ),
    "DISK_FULL": Reason(
        _C.RESOURCE_EXHAUSTED,
        "A node has no disk space left for writes.",
        "Delete points, or free or add disk; then retry: no restart is needed.",
    ),
    "DEADLINE_EXCEEDED": Reason(
        _C.DEADLINE_EXCEEDED, "The deadline passed; a write may have happened.", "Allow more time; retry."
    ),
    "DATA_LOSS": Reason(
        _C.DATA_LOSS,
        "A replica's files are damaged, or were lost with the node's disk; it is out of service.",
        "Restore the replica; the message names the file.",
    ),
    "BACKUP_NOT_FOUND": Reason(
        _C.NOT_FOUND, "There is no complete backup there, or none of this id.", "Correct the source or the id."
    ),
    "BACKUP_DAMAGED": Reason(
        _C.DATA_LOSS,
        "An object of a backup is damaged or missing; nothing of it is restored.",
        "Restore another backup; the message names the object.",
    ),
    "BACKUP_FORMAT_UNKNOWN": Reason(
        _C.FAILED_PRECONDITION, "A newer release wrote the backup.", "Upgrade the servers."
    ),
    "DESTINATION_REFUSED": Reason(
        _C.FAILED_PRECONDITION,
        "A node may not keep backups in this place, or cannot use it; the message says why.",
        "Start every node with --backup-root, or take a place below one.",
    ),
    "DESTINATION_UNAVAILABLE": Reason(
        _C.UNAVAILABLE, "The place of a backup does not answer.", "Retry: what is there already is not sent again."
    ),
    "UNIMPLEMENTED": Reason(_C.UNIMPLEMENTED, "The server does not know this method.", "Upgrade the server."),
    "CANCELLED": Reason(_C.CANCELLED, "The caller cancelled the call.", "Nothing."),
    "INTERNAL": Reason(_C.INTERNAL, "A defect of vectorfleet.", "Report it with the server's log."),
}


class VectorfleetError(Exception):
    """The root of all that vectorfleet raises.

    Attributes:
        reason: one of `REASONS`; stable, for programs.
        message: for people.
        field: the path of the request field at fault (`queries[3].vector`), or "".
        retryable: whether the same call may succeed later without a change.
        retry_after_s: seconds after which it is worth another try, where the server knows; 0: it does not say.
        request_id: under which the server's logs tell of the call; "" where no server has answered.
    """

    default_reason: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, reason: str | None = None, field: str = "", retry_after_s: float = 0.0) -> None:
        self.reason = reason or self.default_reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.request_id = ""
        super().__init__(message)

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC code that `reason` travels under."""
        return REASONS[self.reason].code

    def __str__(self) -> str:
        where = f" (field {self.field})" if self.field else ""
        request = f" [request {self.request_id}]" if self.request_id else ""
        return f"{self.reason}: {self.message}{where}{request}"


class InvalidRequest(VectorfleetError):
    """The request itself is at fault; `field` says where."""

    default_reason = "INVALID_FIELD"


class NotFound(VectorfleetError):
    """What the request names does not exist."""

    default_reason = "COLLECTION_NOT_FOUND"


class AlreadyExists(VectorfleetError):
    """What the request would create exists."""

    default_reason = "COLLECTION_EXISTS"


class FailedPrecondition(VectorfleetError):
    """The request is sound, but the system must change before it can be met."""

    default_reason = "NO_EMBEDDING_MODEL"


class Unauthenticated(VectorfleetError):
    """The call carries no credential, or one that is not valid."""

    default_reason = "CREDENTIAL_INVALID"


class PermissionDenied(VectorfleetError):
    """The caller is known, and may not do this."""

    default_reason = "PERMISSION_DENIED"


class ResourceExhausted(VectorfleetError):
    """A limit was met: a full queue, a full disk, a message over its size."""

    default_reason = "OVERLOADED"


class Unavailable(VectorfleetError):
    """A part of the cluster is away for the moment: retry with backoff."""

    default_reason = "SHARD_UNAVAILABLE"
    retryable = True


class DeadlineExceeded(VectorfleetError):
    """The caller's time ran out. A write may have happened."""

    default_reason = "DEADLINE_EXCEEDED"


class DataLoss(VectorfleetError):
    """Files of a replica are damaged."""

    default_reason = "DATA_LOSS"


class InternalError(VectorfleetError):
    """A defect of vectorfleet, or a server that is not one."""

    default_reason = "INTERNAL"


_CLASS_BY_CODE: Final[dict[grpc.StatusCode, type[VectorfleetError]]] = {
    _C.INVALID_ARGUMENT: InvalidRequest,
    _C.NOT_FOUND: NotFound,
    _C.ALREADY_EXISTS: AlreadyExists,
    _C.FAILED_PRECONDITION: FailedPrecondition,
    _C.UNAUTHENTICATED: Unauthenticated,
    _C.PERMISSION_DENIED: PermissionDenied,
    _C.RESOURCE_EXHAUSTED: ResourceExhausted,
    _C.UNAVAILABLE: Unavailable,
    _C.DEADLINE_EXCEEDED: DeadlineExceeded,
    _C.DATA_LOSS: DataLoss,
}
_REASON_WITHOUT_DETAILS: Final[dict[grpc.StatusCode, str]] = {
    # What gRPC itself raises, before any server of ours has spoken.
    _C.UNAVAILABLE: "UNREACHABLE",
    _C.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    _C.RESOURCE_EXHAUSTED: "OVERLOADED",
    _C.UNIMPLEMENTED: "UNIMPLEMENTED",
    _C.CANCELLED: "CANCELLED",
    _C.UNAUTHENTICATED: "CREDENTIAL_INVALID",
    _C.PERMISSION_DENIED: "PERMISSION_DENIED",
}
_TOO_LARGE: Final = "message larger than max"
"""In gRPC's own words, which alone tell this from headers over the limit and the like."""
_CODE_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


def error_for(reason: str, message: str, *, field: str = "", retry_after_s: float = 0.0) -> VectorfleetError:
    """Makes the exception of the class that `reason` belongs to; an unknown reason becomes `InternalError`."""
    row = REASONS.get(reason)
    if row is None:
        return InternalError(f"{reason}: {message}")
    cls = _CLASS_BY_CODE.get(row.code, InternalError)
    return cls(message, reason=reason, field=field, retry_after_s=retry_after_s)


def to_status(error: VectorfleetError, request_id: str = "") -> status_pb2.Status:
    """Renders an error as `google.rpc.Status` with its machine-readable details, and the id of the call that it is of."""
    details = []
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    details.append(info)
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        bad_request = any_pb2.Any()
        bad_request.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        details.append(bad_request)
    if error.retry_after_s:
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        retry = any_pb2.Any()
        retry.Pack(pause)
        details.append(retry)
    request_id = request_id or error.request_id
    if request_id:
        request = any_pb2.Any()
        request.Pack(error_details_pb2.RequestInfo(request_id=request_id))
        details.append(request)
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=details)


def trailing_metadata(error: VectorfleetError, request_id: str = "") -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata under which gRPC carries a rich status; give it to `context.abort`."""
    return ((DETAILS_KEY, to_status(error, request_id).SerializeToString()),)


def from_status(status: status_pb2.Status) -> VectorfleetError:
    """Reads a `google.rpc.Status` back into the exception that made it."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    reason = _REASON_WITHOUT_DETAILS.get(code, "INTERNAL")
    if code is _C.RESOURCE_EXHAUSTED and _TOO_LARGE in status.message:
        reason = "MESSAGE_TOO_LARGE"
    field = request_id = ""
    retry_after_s = 0.0
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        pause = error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in REASONS:
            reason = info.reason
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(pause):
            retry_after_s = pause.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(request):
            request_id = request.request_id
    error = _CLASS_BY_CODE.get(code, InternalError)(
        status.message, reason=reason, field=field, retry_after_s=retry_after_s
    )
    error.request_id = request_id
    return error


def from_rpc_error(error: grpc.RpcError) -> VectorfleetError:
    """Maps what a gRPC channel raised, sync or asyncio, to the exception tree."""
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    message = (error.details() if hasattr(error, "details") else None) or str(error)
    metadata: Iterable[Any] = (error.trailing_metadata() if hasattr(error, "trailing_metadata") else None) or ()
    for key, value in metadata:
        if key == DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    return from_status(status_pb2.Status(code=code.value[0], message=message))
