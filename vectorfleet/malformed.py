"""Requests that must not be, or cannot be, parsed: which they are, and which field is at fault.

protobuf itself only says that something in a request does not parse. And what does parse may take forty times its size: 64 MiB of
empty messages, two bytes each, become gigabytes of objects. Both are answered by a walk over the bytes, before or instead of
parsing. A server walks on its event loop, so only so many fields are looked at. Pure: bytes in, the exception out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from vectorfleet.errors import InvalidRequest

LOOKS_MAX: Final = 50_000
"""Fields that are looked through for the one at fault: some 50 ms. The path of one beyond stays unknown."""
ENTRIES_MAX: Final = 20_000
"""Top-level fields of a large request; the contract knows no list of more than 10,000."""
LARGE_BYTES: Final = 256 * 1024
"""Smaller requests are parsed without a count."""

_LENGTH_DELIMITED = 2
_WIDTH: Final = {1: 8, 5: 4}
_ID_FIELDS = frozenset({"id", "ids", "after_id"})


def crowded(data: bytes, wrapped_in: int = 0) -> InvalidRequest | None:
    """The error for a large request of so many entries that parsing it would cost more memory than it is worth.

    Args:
        data: the bytes that came.
        wrapped_in: the number of the field that holds the request itself; 0: none does.
    """
    if len(data) <= LARGE_BYTES:
        return None
    try:
        fields = _fields(memoryview(data))
        if wrapped_in:
            inner = (value for number, value in fields if number == wrapped_in and not isinstance(value, int))
            fields = itertools.chain.from_iterable(map(_fields, inner))
        many = next(itertools.islice(fields, ENTRIES_MAX, None), None) is not None
    except (ValueError, IndexError):
        return None  # it does not parse, and the parser will say so
    if many:
        return InvalidRequest(f"the request has over {ENTRIES_MAX} entries; no list of the contract is that long")
    return None


def explain(request_type: Descriptor, data: bytes) -> InvalidRequest:
    """Makes the error for a request that `request_type` refused to parse.

    Args:
        request_type: the descriptor of the message that the method takes.
        data: the bytes that came.

    Returns:
        `InvalidRequest`: `INVALID_ID` or `INVALID_FIELD` with the path of the first string that is not valid UTF-8;
        `INVALID_FIELD` without a path where the bytes are no protobuf at all.
    """
    try:
        path = _first_bad_string(request_type, memoryview(data), itertools.repeat(None, LOOKS_MAX))
    except (ValueError, IndexError):
        path = None
    if path is None:
        return InvalidRequest(f"the request is not a valid {request_type.full_name}")
    name = path.rpartition(".")[2].partition("[")[0]
    reason = "INVALID_ID" if name in _ID_FIELDS else "INVALID_FIELD"
    return InvalidRequest("the text is not valid UTF-8", reason=reason, field=path)


def first_number(data: bytes, field: int) -> int:
    """The first value of a numeric field of a request that does not parse; 0 where it cannot be told."""
    try:
        looked = itertools.islice(_fields(memoryview(data)), LOOKS_MAX)
        return next((value for number, value in looked if number == field and isinstance(value, int)), 0) % 2**64
    except (ValueError, IndexError):
        return 0


def _first_bad_string(message: Descriptor, data: memoryview, looks: Iterator[None]) -> str | None:
    seen: dict[int, int] = {}
    # Each field takes one look from those that are left for the whole request.
    for _, (number, value) in zip(looks, _fields(data), strict=False):
        field: FieldDescriptor | None = message.fields_by_number.get(number)
        position = seen.get(number, 0)
        seen[number] = position + 1
        if field is None or isinstance(value, int):
            continue
        name = f"{field.name}[{position}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                str(value, "utf-8")
            except UnicodeDecodeError:
                return name
        elif field.message_type is not None:
            inner = _first_bad_string(field.message_type, value, looks)
            if inner is not None:
                return f"{name}.{inner}"
    return None


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (field number, value): a number, or the bytes of anything longer. Raises `ValueError` or `IndexError`."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire_type == _LENGTH_DELIMITED:
            width, at = _varint(data, at)
        else:
            width = _WIDTH.get(wire_type, len(data) + 1)
        if at + width > len(data):
            raise ValueError("cut short, or no field of this kind")
        yield key >> 3, data[at : at + width]
        at += width


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
