"""Which inverted lists a query visits when not all rows may be found: the nearest of those that hold enough of them.

A fixed number of lists is wrong under a filter: the nearest may hold none of the rows that pass (a filter on shoes, a query that
is a hat), and the answer runs short or, worse, is full of what happened to be near. So lists without such rows are
skipped, and a query visits as many others as it would without a filter, and goes on until they hold as great a share of the
rows that pass as it would have visited of all rows.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shard_server.engine.index import Codebook, Matrix, Rows

_WIDEN: Final = 4


def rows_to_visit(wanted: int, passing: int, nprobe: int, nlist: int) -> int:
    """How many passing rows a query's lists shall hold: the share that `nprobe` lists have, and never below `wanted`."""
    return max(wanted, math.ceil(passing * min(1.0, nprobe / nlist)))


def nearest_lists(codebook: Codebook, queries: Matrix, per_list: NDArray[np.int64], rows: int, nprobe: int) -> Rows:
    """Finds each query's nearest lists that hold `rows` rows together, and `nprobe` at least; or all that there are.

    Args:
        codebook: assigns queries to lists.
        queries: float32[nq, dim], prepared.
        per_list: int64[nlist]: the rows that count; lists without any are passed over.
        rows: how many of them.
        nprobe: lists that hold any.

    Returns:
        int64[nq, n] lists, nearest first; -1 where a query needs fewer than another.
    """
    occupied, total = int(np.count_nonzero(per_list)), int(per_list.sum())
    rows, nprobe = min(rows, total), min(nprobe, occupied)
    width = min(codebook.nlist, 2 * max(nprobe, -(-rows * codebook.nlist // max(1, total))))
    keys = codebook.distances(queries)
    each = np.arange(len(queries))[:, None]
    while True:
        lists = np.argpartition(keys, width - 1, axis=1)[:, :width]
        lists = lists[each, np.argsort(keys[each, lists], axis=1)]
        held = per_list[lists]
        rank = np.cumsum(held > 0, axis=1)
        sum_of_rows = np.cumsum(held, axis=1)
        if width == codebook.nlist or bool(np.all((sum_of_rows[:, -1] >= rows) & (rank[:, -1] >= nprobe))):
            break
        width = min(codebook.nlist, _WIDEN * width)
    chosen = (held > 0) & ((sum_of_rows - held < rows) | (rank <= nprobe))
    first = np.argsort(~chosen, axis=1, kind="stable")[:, : max(1, int(chosen.sum(axis=1).max()))]
    return np.where(chosen[each, first], lists[each, first], -1)
