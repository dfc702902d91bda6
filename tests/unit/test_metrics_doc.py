"""docs/observability.md lists the metrics that the code makes, with their kinds, labels and meanings.

After a change, `python -m tests.unit.test_metrics_doc` prints the tables to paste into docs/observability.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from router.metrics import RouterGauges, RouterMetrics
from shard_server.gauges import ShardGauges
from shard_server.metrics import ShardMetrics
from shard_server.threads import WorkPool
from vectorfleet.metrics import BUILD, Family, Metrics

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observability.md"
NAME = re.compile(r"vectorfleet_(router|shard)(_[a-z]+)+")


def families() -> list[Family]:
    """All that routers and shard servers make."""
    nothing: Any = None
    router, shard = Metrics("router", enabled=False), Metrics("shard", enabled=False)
    RouterGauges(router, RouterMetrics(router), nothing, nothing, nothing, nothing, nothing)
    control = WorkPool("control", threads=1, waiting_max=1)
    ShardMetrics(shard)
    ShardGauges(shard, nothing, nothing, [control], {}, nothing, Path(), 0)
    control.close()
    return [BUILD, *router.families, *shard.families]


def rows() -> list[str]:
    return [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |"
        for one in families()
    ]


def test_the_page_shows_every_metric() -> None:
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `vectorfleet_")]
    assert shown == rows(), "run `python -m tests.unit.test_metrics_doc` and paste what it prints into the page"


def test_names_follow_prometheus() -> None:
    for one in families():
        if one is not BUILD:
            assert NAME.fullmatch(one.name), one.name
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", one.name), f"{one.name}: base units"
        assert not {"id", "query", "point", "message", "address"} & set(one.labels), f"{one.name}: without bound"


if __name__ == "__main__":
    print("\n".join(rows()))
