"""The options of a client's channel: the fleet's own, a name, and a connection that is not shared between clients."""

from __future__ import annotations

from typing import Final

from vectorfleet._version import __version__
from vectorfleet.rpc_options import CHANNEL_OPTIONS

CLIENT_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    *CHANNEL_OPTIONS,
    # A name that stands for several routers, such as a headless Service: each call goes to the next.
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
    ("grpc.primary_user_agent", f"vectorfleet-python/{__version__}"),
    # Otherwise clients of one process share a connection, and with it the backoff of one that failed before.
    ("grpc.use_local_subchannel_pool", 1),
)
