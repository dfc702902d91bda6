"""Says which field of a request does not parse: protobuf itself only says that something in it does not.

Read on the way to an error alone. Pure: bytes in, the exception out.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from vectorfleet.errors import InvalidRequest

_LENGTH_DELIMITED = 2
_ID_FIELDS = frozenset({"id", "ids", "after_id"})


def explain(request_type: Descriptor, data: bytes) -> InvalidRequest:
    """Makes the error for a request that `request_type` refused to parse.

    Args:
        request_type: the descriptor of the message that the method takes.
        data: the bytes that came.

    Returns:
        `InvalidRequest`: `INVALID_ID` or `INVALID_FIELD` with the path of the first string that is not valid UTF-8;
        `INVALID_FIELD` without a path where the bytes are no protobuf at all.
    """
    path = _first_bad_string(request_type, data)
    if path is None:
        return InvalidRequest(f"the request is not a valid {request_type.full_name}")
    name = path.rpartition(".")[2].partition("[")[0]
    reason = "INVALID_ID" if name in _ID_FIELDS else "INVALID_FIELD"
    return InvalidRequest("the text is not valid UTF-8", reason=reason, field=path)


def _first_bad_string(message: Descriptor, data: bytes) -> str | None:
    # A type without fields takes every field as unknown, which gives us the raw bytes of each.
    try:
        fields = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    seen: dict[int, int] = {}
    for part in fields:  # type: ignore[attr-defined]  # the stubs miss that it can be iterated
        field: FieldDescriptor | None = message.fields_by_number.get(part.field_number)
        position = seen.get(part.field_number, 0)
        seen[part.field_number] = position + 1
        if field is None or part.wire_type != _LENGTH_DELIMITED:
            continue
        name = f"{field.name}[{position}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                part.data.decode("utf-8")
            except UnicodeDecodeError:
                return name
        elif field.message_type is not None:
            inner = _first_bad_string(field.message_type, part.data)
            if inner is not None:
                return f"{name}.{inner}"
    return None
