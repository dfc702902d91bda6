"""A node's shares of its ceiling, and what no prediction explains."""

from __future__ import annotations

import pytest

from shard_server import node_memory
from shard_server.engine.memory import INDEX
from vectorfleet import limits


@pytest.mark.parametrize("limit_bytes", [1 << 28, 1 << 30, 1 << 40])
def test_shares_leave_room_for_data(limit_bytes: int) -> None:
    shares = node_memory.shares(limit_bytes)
    assert sum(shares.values()) < limit_bytes
    assert shares[node_memory.SEARCHES] == min(limit_bytes // 8, node_memory.SEARCH_BYTES_MAX)


def test_a_large_node_takes_a_full_message_of_each_kind() -> None:
    shares = node_memory.shares(1 << 30)
    assert min(shares[node_memory.WRITES], shares[node_memory.SEARCHES]) >= limits.MESSAGE_BYTES_MAX


def test_what_is_not_predicted_counts_and_mapped_codes_explain_nothing() -> None:
    kinds = {"buffers": 100, INDEX: 1000, node_memory.BEYOND: 70}
    assert node_memory.unpredicted(kinds, 150) == 50
    assert node_memory.unpredicted(kinds, 90) == 0
