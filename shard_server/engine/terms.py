"""A payload's values as terms: what filters compare, in 128 bits whatever it is. Pure.

A term is (column, value): a column is a field's path and the JSON type found there, a value is two uint64 that compare, as
a pair, in the order of the values:

    number   its nearest float64, in an encoding that sorts; then the remainder of an integer that float64 cannot hold
    string   XXH3-128 of its UTF-8: equality alone
    boolean  0 or 1; null and containers (an object, or an array without elements): 0

So 1 and 1.0 are one value, 2^53 and 2^53 + 1 are two, and a text of 60 KiB costs no more than a word. Arrays are looked
through: each element stands for the field.
"""

from __future__ import annotations

import enum
import json
import math
import struct
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

_DOUBLE: Final = struct.Struct("<d")
_U64: Final = struct.Struct("<Q")
_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1
_INTEGERS_OF_DOUBLE: Final = 1 << 53

Key = tuple[int, int]
"""Two uint64."""


class Kind(enum.IntEnum):
    """The JSON types that filters tell apart."""

    NUMBER = 1
    STRING = 2
    BOOLEAN = 3
    NULL = 4
    CONTAINER = 5


KIND_OF: Final = {
    int: Kind.NUMBER,
    float: Kind.NUMBER,
    str: Kind.STRING,
    bool: Kind.BOOLEAN,
    type(None): Kind.NULL,
    dict: Kind.CONTAINER,
}


def column_key(path: str, kind: Kind) -> Key:
    """The name of the column that holds the values of one type at one path."""
    return _digest(bytes((kind,)) + path.encode("utf-8", "surrogatepass"))


def key_of(value: Any) -> Key:
    """The value of a leaf."""
    kind = KIND_OF[type(value)]
    if kind == Kind.NUMBER:
        return _number_key(value)
    if kind == Kind.STRING:
        return _digest(value.encode("utf-8", "surrogatepass"))
    return int(value) if kind == Kind.BOOLEAN else 0, 0


def _number_key(value: float) -> Key:
    try:
        nearest = float(value) + 0.0  # makes -0.0 the same as 0.0
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    remainder = value - int(nearest) if isinstance(value, int) and math.isfinite(nearest) else 0
    (bits,) = _U64.unpack(_DOUBLE.pack(nearest))
    return bits ^ (_ALL if bits & _SIGN else _SIGN), min(max(remainder, -_SIGN), _SIGN - 1) + _SIGN


def leaves(payload: bytes) -> list[tuple[str, Any]]:
    """The values of a payload with their paths; a container stands as an empty dict. What is no JSON object has none."""
    if not payload:
        return []
    found: list[tuple[str, Any]] = []
    rest = list(_parsed(payload).items())
    while rest:
        path, value = leaf = rest.pop()
        kind = type(value)
        if kind is dict:
            found.append((path, {}))
            rest.extend((f"{path}.{key}", inner) for key, inner in value.items())
        elif kind is not list:
            found.append(leaf)
        elif value:
            rest.extend((path, inner) for inner in value)
        else:
            found.append((path, {}))
    return found


def keys_of(values: Sequence[Any]) -> NDArray[np.uint64]:
    """The values of leaves: uint64[n, 2]. The same as `key_of`, and faster for many."""
    keys = np.zeros((len(values), 2), np.uint64)
    kinds = np.fromiter((KIND_OF[type(value)] for value in values), np.uint8, len(values))
    texts = np.flatnonzero(kinds == Kind.STRING).tolist()
    digests = b"".join(xxhash.xxh3_128_digest(values[at].encode("utf-8", "surrogatepass")) for at in texts)
    keys[texts] = np.frombuffer(digests, ">u8").reshape(-1, 2)
    numbers = np.flatnonzero(kinds == Kind.NUMBER).tolist()
    small = [at for at in numbers if abs(values[at]) <= _INTEGERS_OF_DOUBLE]
    bits = (np.asarray([values[at] for at in small], np.float64) + 0.0).view(np.uint64)
    keys[small, 0] = bits ^ np.where(bits >> np.uint64(63), np.uint64(_ALL), np.uint64(_SIGN))
    keys[small, 1] = _SIGN
    keys[kinds == Kind.BOOLEAN, 0] = [value for value in values if value is True or value is False]
    if len(small) < len(numbers):
        for at in set(numbers).difference(small):
            keys[at] = _number_key(values[at])
    return keys


def _parsed(payload: bytes) -> dict[str, Any]:
    """The object that a payload holds; an empty one where it holds none.

    Routers let objects alone through, but the log takes payloads as bytes. Raising here would stop the sealing of the
    replica's buffer, and all filtered searches of it, for one point.
    """
    try:
        content = _loaded(payload)
    except RecursionError:
        # The router could read it: from the bottom of a stack there is room for at least as many levels.
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.append(_loaded_if_not_too_deep(payload)))
        reader.start()
        reader.join()
        (content,) = found
    return content if isinstance(content, dict) else {}


def _loaded(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return None


def _loaded_if_not_too_deep(payload: bytes) -> Any:
    try:
        return _loaded(payload)
    except RecursionError:
        return None


def _digest(content: bytes) -> Key:
    digest = xxhash.xxh3_128_intdigest(content)
    return digest >> 64, digest & _ALL
