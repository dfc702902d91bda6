"""Every limit of the contract, named once, with the relations that must hold between them.

Clients, routers and shard servers read the same constants. The module checks itself when it is imported: a limit that
contradicts another stops the program at start, not a request in production. Units stand last in a name.
"""

from __future__ import annotations

from typing import Final

DIM_MAX: Final = 4096
VECTOR_LENGTH_MAX: Final = 1e18
"""Of two vectors within it neither the inner product nor the squared distance leaves the range of float32."""
K_MAX: Final = 10_000
K_DEFAULT: Final = 10
QUERIES_MAX: Final = 1024
POINTS_PER_CALL_MAX: Final = 10_000
ID_BYTES_MAX: Final = 256
PAYLOAD_BYTES_MAX: Final = 64 * 1024
TEXT_BYTES_MAX: Final = 60 * 1024
COLLECTION_NAME_CHARS_MAX: Final = 128
SHARDS_MAX: Final = 1024
REPLICAS_MAX: Final = 1
NPROBE_MAX: Final = 65_536
NLIST_MAX: Final = 65_536
OVERSAMPLE_MAX: Final = 1000.0
OVERSAMPLE_DEFAULT: Final = 10.0
CANDIDATES_MAX: Final = 100_000
"""Candidates a query that one shard compares on raw vectors: k × oversample is cut to this."""
FILTER_BYTES_MAX: Final = 256 * 1024
FILTER_DEPTH_MAX: Final = 16
FILTER_CONDITIONS_MAX: Final = 256
FILTER_VALUES_MAX: Final = 10_000
"""Values of all conditions of a filter together."""
FILTER_PATH_BYTES_MAX: Final = 1024
TRAIN_POINTS_MIN: Final = 256
TRAIN_POINTS_MAX: Final = 10_000_000
TRAIN_POINTS_DEFAULT: Final = 10_000
SCROLL_PAGE_DEFAULT: Final = 100
SCROLL_PAGE_MAX: Final = 10_000
LIST_PAGE_MAX: Final = 1000
KEYS_MAX: Final = 10_000
KEY_SCOPES_MAX: Final = 100
KEY_DESCRIPTION_CHARS_MAX: Final = 200

CALL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of points, or of hits, that one public call carries."""
MESSAGE_BYTES_MAX: Final = CALL_BYTES_MAX + 4 * 1024 * 1024
"""gRPC's own limit on one message, set on both sides of every hop: a full call with its framing."""

MEMORY_SHARE: Final = 0.9
"""Of the memory that a process may use, which it admits work for, and which `sizing` counts on."""
CONNECTIONS_MAX: Final = 16_384
"""Of one process; fewer where it may open fewer files: connections take at most half of them."""
CONNECTION_CALLS_MAX: Final = 1_000
"""Calls under way on one connection. Its client holds the rest back."""
CONNECTION_AGE_S: Final = 300.0
"""After which a connection takes no new calls, give or take a tenth, and ends with its last one: so clients spread over routers
that were added, and nobody's call fails."""
CONNECTION_IDLE_S: Final = 900.0
"""Without a call, after which a connection is closed; its client's next call makes another."""
HANDSHAKE_S: Final = 10.0
"""From the connection to the end of the handshake, TLS's and HTTP/2's."""
METADATA_BYTES_MAX: Final = 16 * 1024
"""Headers of one call."""
PENDING_S: Final = 10
"""A call that the process has not even taken up for so long is dropped."""
STREAM_INFLIGHT_MAX: Final = 32
"""Requests of one stream that a router works on at once; the rest wait in gRPC's flow control."""
SEARCH_TIMEOUT_DEFAULT_S: Final = 10.0
"""Deadline of a search whose caller gave none."""
CALL_TIMEOUT_DEFAULT_S: Final = 30.0
"""Deadline of any other call whose caller gave none."""
BACKUP_TIMEOUT_DEFAULT_S: Final = 86_400.0
"""Deadline of a backup or a restore whose caller gave none."""
CALL_TIMEOUT_MAX_S: Final = 366 * 86_400.0
"""The longest deadline that a client sets: far beyond it, gRPC's clock overflows and calls fail at once."""

assert (2 * VECTOR_LENGTH_MAX) ** 2 < 1e38, "of float32's 3.4e38, with room for rounding"
assert K_DEFAULT <= K_MAX <= CANDIDATES_MAX
assert 4 * FILTER_DEPTH_MAX < 100, "protobuf reads 100 levels of messages; a filter takes two for each of its own"
assert FILTER_PATH_BYTES_MAX < FILTER_BYTES_MAX < CALL_BYTES_MAX
assert POINTS_PER_CALL_MAX >= K_MAX, "the hits of one query must be fetchable by one Get"
assert TEXT_BYTES_MAX < PAYLOAD_BYTES_MAX, "a text is kept in the payload"
assert QUERIES_MAX * DIM_MAX * 4 <= CALL_BYTES_MAX, "a full batch of the widest queries must fit a call"
assert CALL_BYTES_MAX < MESSAGE_BYTES_MAX < 2**31
assert CONNECTION_CALLS_MAX > STREAM_INFLIGHT_MAX
assert HANDSHAKE_S < CONNECTION_AGE_S < CONNECTION_IDLE_S
assert SEARCH_TIMEOUT_DEFAULT_S <= CALL_TIMEOUT_DEFAULT_S <= BACKUP_TIMEOUT_DEFAULT_S <= CALL_TIMEOUT_MAX_S
assert TRAIN_POINTS_MIN <= TRAIN_POINTS_DEFAULT <= TRAIN_POINTS_MAX
assert SCROLL_PAGE_DEFAULT <= SCROLL_PAGE_MAX
