"""A caller's arguments → checked values that fit the wire: ids, vectors, texts, payloads, numbers.

Pure. Refuses what a request cannot carry or what only the caller's own positions can name (`vectors[70000]`), before anything
is sent. Limits that depend on the collection or on the server's release are the server's to judge.
"""

from __future__ import annotations

import json
import math
import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vectorfleet import limits
from vectorfleet._models import FLOAT32
from vectorfleet.errors import InvalidRequest

Ids = Iterable[str | SupportsIndex] | NDArray[Any]
Filter = Mapping[str, Any]
"""In the manner of MongoDB's queries; see `_filters`."""
Payloads = Iterable[Mapping[str, Any] | None]

_T = TypeVar("_T")

_UINT32_MAX: Final = 2**32 - 1
_CHECKED_ROWS: Final = 16_384
"""Rows checked at a time: bounds the temporary array of a check."""


def refuse(field: str, message: str, *, reason: str = "INVALID_FIELD") -> NoReturn:
    """Raises `InvalidRequest` for an argument."""
    raise InvalidRequest(message, reason=reason, field=field)


def point_ids(ids: Ids) -> list[str]:
    """Returns ids as strings; integers are written in decimal.

    Raises:
        InvalidRequest: `INVALID_ID` for an id that is empty, over 256 bytes, not valid Unicode, or neither str nor int;
            `INVALID_FIELD` where there are none, or where a single string was given.
    """
    if isinstance(ids, str | bytes):
        refuse("ids", "ids must be a sequence of ids, not one string")
    given = ids.tolist() if isinstance(ids, np.ndarray) and ids.ndim else _listed(ids, "ids")
    if not given:
        refuse("ids", "there are no ids")
    texts = [one if isinstance(one, str) else _decimal(one, row) for row, one in enumerate(given)]
    for row, text in enumerate(texts):
        # Most ids are so short that their bytes need no counting; ASCII is cheap to recognise.
        if not text or not text.isascii() or len(text) > limits.ID_BYTES_MAX:
            size = len(_utf8(text, f"ids[{row}]", "INVALID_ID"))
            if not 1 <= size <= limits.ID_BYTES_MAX:
                message = f"an id is 1 to {limits.ID_BYTES_MAX} bytes; this one has {size}"
                refuse(f"ids[{row}]", message, reason="INVALID_ID")
    return texts


def matrix(vectors: ArrayLike, *, one_is_enough: bool = False) -> NDArray[np.float32]:
    """Returns vectors as little-endian float32 (n, dim), C-contiguous; without a copy where they are that already.

    Args:
        vectors: anything that numpy makes a (n, dim) array of numbers from.
        one_is_enough: a single vector (dim,) is taken as (1, dim).

    Raises:
        InvalidRequest: `WRONG_DIMENSION` for a shape that is none, `NOT_FINITE` for NaN or infinity (or what float32 cannot
            hold), `INVALID_FIELD` for what are no numbers, or where there are none.
    """
    try:
        array = np.asarray(vectors)
    except ValueError:
        refuse("vectors", "the vectors are not all of the same dimension", reason="WRONG_DIMENSION")
    if array.size and array.dtype.kind not in "fiu":
        refuse("vectors", f"vectors must be real numbers, not {array.dtype}")
    if array.ndim == 1 and one_is_enough and array.size:
        array = array[None, :]
    if array.ndim != 2:
        wanted = "(dim,) or (n, dim)" if one_is_enough else "(n, dim)"
        refuse("vectors", f"vectors must be of shape {wanted}, not {array.shape}", reason=_shape_reason(array))
    if not len(array):
        refuse("vectors", "there are no vectors")
    if not array.shape[1]:
        refuse("vectors", "the vectors have no components", reason="WRONG_DIMENSION")
    if array.dtype == FLOAT32:
        result = np.ascontiguousarray(array)
    else:
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(array, FLOAT32)
    for first in range(0, len(result), _CHECKED_ROWS):
        finite = np.isfinite(result[first : first + _CHECKED_ROWS])
        if not np.logical_and.reduce(finite, axis=None):  # what `all` comes to, two calls later
            row, component = (int(at) for at in np.argwhere(~finite)[0])
            row += first
            message = f"component {component} of the vector is {result[row, component]} as float32"
            refuse(f"vectors[{row}]", message, reason="NOT_FINITE")
    return result


def text_list(texts: Iterable[str]) -> list[str]:
    """Returns texts, of which there is at least one.

    Raises:
        InvalidRequest: there are none; one is empty, not a str, or not valid Unicode.
    """
    given = _listed(texts, "texts")
    if not given:
        refuse("texts", "there are no texts")
    for row, text in enumerate(given):
        if not isinstance(text, str):
            refuse(f"texts[{row}]", f"a text must be a str, not {type(text).__name__}")
        if not text:
            refuse(f"texts[{row}]", "the text is empty")
        if not text.isascii():
            _utf8(text, f"texts[{row}]", "INVALID_FIELD")
    return given


def payload_bytes(payloads: Payloads | None, rows: int) -> list[bytes]:
    """Returns payloads as JSON in UTF-8: one a row, b"" for none; or no entries at all where none were given.

    Numbers and arrays of numpy are written as numbers and lists.

    Raises:
        InvalidRequest: `INVALID_PAYLOAD` for what is no JSON object, `PAYLOAD_TOO_LARGE` over 64 KiB, `INVALID_FIELD` for
            another number of payloads than rows.
    """
    if payloads is None:
        return []
    if isinstance(payloads, Mapping | str | bytes):
        refuse("payloads", "payloads must be a sequence of mappings, one for each id")
    given = _listed(payloads, "payloads")
    if len(given) != rows:
        refuse("payloads", f"there are {len(given)} payloads for {rows} ids")
    return [b"" if one is None else _payload(one, f"payloads[{row}]") for row, one in enumerate(given)]


def unsigned(value: SupportsIndex, field: str) -> int:
    """Returns a number that fits uint32."""
    try:
        number = operator.index(value)
    except TypeError:
        refuse(field, f"{field} must be an integer, not {type(value).__name__}")
    if not 0 <= number <= _UINT32_MAX:
        refuse(field, f"{field} must be 0 to {_UINT32_MAX}, not {number}")
    return number


def real(value: float, field: str) -> float:
    """Returns a number as a float; it may be infinite or NaN."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(field, f"{field} must be a number, not {reprlib.repr(value)}")


def flag(value: bool, field: str) -> bool:
    """Returns True or False."""
    if not isinstance(value, bool | np.bool_):
        refuse(field, f"{field} must be True or False, not {reprlib.repr(value)}")
    return bool(value)


def token(value: bytes) -> bytes:
    """Returns a consistency token; what it says is the server's to judge."""
    if not isinstance(value, bytes):
        refuse("consistency_token", f"a consistency token is bytes, as upsert gave them, not {type(value).__name__}")
    return value


def seconds(value: float, field: str = "timeout") -> float:
    """Returns a time that a call may take."""
    number = real(value, field)
    if not 0 < number < math.inf:
        refuse(field, f"{field} must be a positive number of seconds, not {number:g}: every call has a deadline")
    if number > limits.CALL_TIMEOUT_MAX_S:
        refuse(
            field, f"{field} must be at most {limits.CALL_TIMEOUT_MAX_S:.0f} seconds, which is a year, not {number:g}"
        )
    return number


def text(value: str, field: str) -> str:
    """Returns a string that fits the wire. Raises `InvalidRequest` where it is none, or no valid Unicode."""
    if not isinstance(value, str):
        refuse(field, f"{field} must be a str, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            refuse(field, f"{field} is not valid Unicode")
    return value


def names(values: Iterable[str]) -> list[str]:
    """Returns names of collections, at least one; whether they are names is the server's to judge."""
    if isinstance(values, str | bytes):
        refuse("collections", "collections must be a sequence of names, not one string")
    given = [text(name, f"collections[{position}]") for position, name in enumerate(_listed(values, "collections"))]
    if not given:
        refuse("collections", "name at least one collection, or leave them out for all")
    return given


def target(address: str) -> str:
    """Returns an address that has the form host:port."""
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        refuse("address", f"an address has the form host:port, for example 127.0.0.1:7700, not {address!r}")
    return address


def _listed(values: Iterable[_T], field: str) -> list[_T]:
    try:
        iterator = iter(values)
    except TypeError:
        refuse(field, f"{field} must be a sequence, not {type(values).__name__}")
    return list(iterator)


def _decimal(value: Any, row: int) -> str:
    if not isinstance(value, bool | np.bool_):
        try:
            return str(operator.index(value))
        except TypeError:
            pass
    refuse(f"ids[{row}]", f"an id must be a str or an int, not {type(value).__name__}", reason="INVALID_ID")


def _utf8(text: str, field: str, reason: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        refuse(field, "the text holds half of a surrogate pair, which is not valid Unicode", reason=reason)


def _shape_reason(array: NDArray[Any]) -> str:
    return "WRONG_DIMENSION" if array.size else "INVALID_FIELD"


def _payload(payload: Mapping[str, Any], field: str) -> bytes:
    if not isinstance(payload, Mapping):
        refuse(field, f"a payload must be a mapping, not {type(payload).__name__}", reason="INVALID_PAYLOAD")
    try:
        raw = _JSON.encode(dict(payload)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        refuse(field, f"the payload cannot be written as JSON: {error}", reason="INVALID_PAYLOAD")
    if len(raw) > limits.PAYLOAD_BYTES_MAX:
        message = f"a payload has at most {limits.PAYLOAD_BYTES_MAX} bytes of JSON; this one has {len(raw)}"
        refuse(field, message, reason="PAYLOAD_TOO_LARGE")
    return raw


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
