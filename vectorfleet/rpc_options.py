"""The options of every gRPC channel and server: one message limit and one idea of liveness on both ends of each hop.

Plain values, without any import beyond `limits`, so that the client needs no server package. A server's ping allowance
is wider than what our channels send: a channel that pings too often would be cut off with `ENHANCE_YOUR_CALM`.

What a stranger can hold on a server is bounded here, before any code of ours runs: connections, calls on each, headers,
handshakes that do not end.
"""

from __future__ import annotations

from typing import Final

from vectorfleet import limits

CHANNEL_PING_INTERVAL_MS: Final = 10_000
SERVER_PING_INTERVAL_MS: Final = 30_000
PING_TIMEOUT_MS: Final = 5_000
PING_INTERVAL_ALLOWED_MS: Final = 5_000
CONNECT_TIMEOUT_MS: Final = 2_000
RECONNECT_BACKOFF_MAX_MS: Final = 1_000
"""gRPC's own maximum is two minutes: a node that came back would stay unused for that long."""
RESOLVE_INTERVAL_MIN_MS: Final = 1_000
"""gRPC's own minimum is 30 seconds: a node whose name came to stand for another address would stay unused for that long."""

_IDENTITY_ALONE: Final = 1

_MESSAGE_LIMITS: Final = (
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
)

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_MESSAGE_LIMITS,
    ("grpc.keepalive_time_ms", CHANNEL_PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # gRPC waits for a lost ping by this one, a minute by default
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a quiet call may wait long
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In gRPC's core this is the time that one attempt to connect may take, whatever its name says.
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_INTERVAL_MIN_MS),
)
"""For `grpc.insecure_channel`, `grpc.secure_channel` and their asyncio twins."""

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_MESSAGE_LIMITS,
    ("grpc.so_reuseport", 0),  # a port that another process holds is an error, not a coin toss between the two
    ("grpc.keepalive_time_ms", SERVER_PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # gRPC waits for a lost ping by this one, a minute by default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_ALLOWED_MS),
    ("grpc.max_allowed_incoming_connections", limits.CONNECTIONS_MAX),
    ("grpc.max_concurrent_streams", limits.CONNECTION_CALLS_MAX),
    # gRPC spreads the age by a tenth, and gives calls under way all the time they want: no grace is set.
    ("grpc.max_connection_age_ms", int(limits.CONNECTION_AGE_S * 1000)),
    ("grpc.max_connection_idle_ms", int(limits.CONNECTION_IDLE_S * 1000)),
    ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_S * 1000)),
    ("grpc.max_metadata_size", limits.METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES_MAX),
    ("grpc.server_max_unrequested_time_in_server", limits.PENDING_S),
    # gRPC inflates a compressed message before it looks at the limit: 68 MB on the wire could become 68 GB.
    ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ALONE),
)
"""For `grpc.aio.server`."""
