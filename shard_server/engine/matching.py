"""Which rows pass a filter: a `Filter` of the contract, asked of postings. Pure.

The meaning of each condition is the contract's (protos/vectorfleet/v1/types.proto). Filters are valid: the router has checked
them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shard_server.engine import terms
from shard_server.engine.postings import U32, Column, Postings
from shard_server.engine.terms import Key, Kind
from vectorfleet.v1 import types_pb2

Mask = NDArray[np.bool_]


def matching_rows(wanted: types_pb2.Filter, postings: Postings) -> Mask:
    """Returns bool[rows]: which rows pass."""
    form = wanted.WhichOneof("form")
    if form == "field":
        return _mask(_field(wanted.field, postings), postings.rows)
    if form == "all_of":
        return _every([matching_rows(inner, postings) for inner in wanted.all_of.filters])
    if form == "any_of":
        return ~_every([~matching_rows(inner, postings) for inner in wanted.any_of.filters])
    return _every([~matching_rows(inner, postings) for inner in wanted.none_of.filters])


def _every(masks: Sequence[Mask]) -> Mask:
    result = masks[0]
    for mask in masks[1:]:
        result &= mask
    return result


def _field(wanted: types_pb2.FieldFilter, postings: Postings) -> tuple[list[U32], bool]:
    """The rows where a condition is true, or, with False, where it is not."""
    test = wanted.WhichOneof("test")
    if test == "equals":
        return _equal(wanted.path, wanted.equals.values, postings), True
    if test == "range":
        column = postings.column(wanted.path, Kind.NUMBER)
        return ([] if column is None else [_within(wanted.range, column)]), True
    columns = [column for kind in Kind if (column := postings.column(wanted.path, kind)) is not None]
    return [column.rows(0, len(column.high)) for column in columns], wanted.exists


def _equal(path: str, values: Sequence[types_pb2.FilterValue], postings: Postings) -> list[U32]:
    by_kind: dict[Kind, list[Key]] = {}
    for value in values:
        kind, key = _term(value)
        by_kind.setdefault(kind, []).append(key)
    return [
        rows
        for kind, keys in by_kind.items()
        if (column := postings.column(path, kind)) is not None
        for rows in column.rows_of(keys)
    ]


def _within(bounds: types_pb2.FilterRange, column: Column) -> U32:
    first, last = 0, len(column.high)
    if bounds.HasField("gt"):
        first = column.position(_term(bounds.gt)[1], after=True)
    elif bounds.HasField("gte"):
        first = column.position(_term(bounds.gte)[1], after=False)
    if bounds.HasField("lt"):
        last = column.position(_term(bounds.lt)[1], after=False)
    elif bounds.HasField("lte"):
        last = column.position(_term(bounds.lte)[1], after=True)
    return column.rows(first, last)


def _term(value: types_pb2.FilterValue) -> tuple[Kind, Key]:
    form = value.WhichOneof("value")
    found = None if form == "null_value" else getattr(value, str(form))
    return terms.KIND_OF[type(found)], terms.key_of(found)


def _mask(found: tuple[list[U32], bool], rows: int) -> Mask:
    pieces, positive = found
    mask = np.full(rows, not positive)
    for piece in pieces:
        mask[piece] = positive
    return mask
