"""A process's options as a bug report may show them. Pure.

By a list of what is harmless: an option that nobody has looked at is named, and its value withheld.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

WITHHELD: Final = "(withheld)"
HARMLESS: Final = frozenset(
    {
        "advertise", "backup_root", "batches_in_flight", "data", "embed_threads", "etcd", "etcd_ca", "etcd_prefix",
        "health_port", "host", "log_format", "log_level", "memory_limit", "metrics_address", "min_free_bytes", "node_id",
        "otlp_endpoint", "port",
        "recall_check_rate", "reuse_port", "router_id", "seal_age_s", "seal_bytes", "seal_points", "search_threads",
        "slow_query_ms", "trace_ratio",
    }
)  # fmt: skip
"""By the names of the arguments."""
_USER_IN_URL: Final = re.compile(r"//[^/@\s]*@")


def shown(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Options by name, as text. A user and password within a URL are cut out of what is shown."""
    return {
        name: _USER_IN_URL.sub("//…@", str(value)) if name in HARMLESS else _whether(value)
        for name, value in sorted(arguments.items())
    }


def _whether(value: Any) -> str:
    return "(not set)" if value in (None, "", [], False) else WITHHELD
