"""Points out of a replica by id or in order, in slices: what an answer holds in memory stays near its limit.

Blocking; runs in a thread. A point can take 16 KiB of vector and 64 KiB of payload, so 10,000 of them would be 800 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vectorfleet import limits
from vectorfleet.errors import ResourceExhausted
from vectorfleet.internal.v1 import shard_service_pb2 as pb
from vectorfleet.v1 import types_pb2

if TYPE_CHECKING:
    from shard_server.engine.answers import StoredPoint
    from shard_server.engine.replica import Replica

SLICE_POINTS: Final = 256
SLICE_BYTES_MAX: Final = SLICE_POINTS * (4 * limits.DIM_MAX + limits.PAYLOAD_BYTES_MAX + 2 * limits.ID_BYTES_MAX)
PAGE_BYTES: Final = 16 * 1024 * 1024
"""A page of a scan ends when it holds this much, though fewer points than asked for: scans go on from the last id."""

assert PAGE_BYTES + SLICE_BYTES_MAX < limits.CALL_BYTES_MAX


def fetch(replica: Replica, request: pb.FetchRequest) -> pb.FetchResponse:
    """Reads points by id. Raises `ResourceExhausted` (RESPONSE_TOO_LARGE) where they pass what one message may hold."""
    response = pb.FetchResponse()
    size = 0
    for first in range(0, len(request.ids), SLICE_POINTS):
        points = replica.fetch(request.ids[first : first + SLICE_POINTS], request.with_vector)
        size += _size(points)
        if size > limits.CALL_BYTES_MAX:
            raise ResourceExhausted("the points asked for pass 64 MiB", reason="RESPONSE_TOO_LARGE")
        response.points.extend(_as_message(point) for point in points)
    return response


def scan(replica: Replica, request: pb.ScanRequest) -> pb.ScanResponse:
    """Reads points after an id, in order, until the limit, the end, or a full page."""
    response = pb.ScanResponse()
    after_id, size = request.after_id, 0
    while not response.end and len(response.points) < request.limit and size < PAGE_BYTES:
        wanted = min(SLICE_POINTS, request.limit - len(response.points))
        points, response.end = replica.scan(after_id, wanted, request.with_vector)
        response.points.extend(_as_message(point) for point in points)
        size += _size(points)
        after_id = points[-1].id if points else after_id
    return response


def _as_message(point: StoredPoint) -> types_pb2.Point:
    return types_pb2.Point(id=point.id, vector=point.vector, payload=point.payload, version=point.version)


def _size(points: list[StoredPoint]) -> int:
    return sum(len(point.vector) + len(point.payload) + 2 * len(point.id) + 32 for point in points)
