"""Alerts and dashboard as data: what they ask, and the names of the metrics in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).resolve().parents[2] / "k8s" / "monitoring"
ALERTS: Final = FOLDER / "alerts.yaml"
DASHBOARD: Final = FOLDER / "dashboard.json"
METRIC: Final = re.compile(r"\b(?:vectorfleet|process)_[a-z0-9_]+\b")


def alerts() -> dict[str, dict[str, Any]]:
    """The rules by name."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def hurried(window: str) -> str:
    """The same rules for who has seconds: every range becomes `window`, every wait one second; nothing else changes."""
    text = re.sub(r"\[(?:5m|1h)\]", f"[{window}]", ALERTS.read_text(encoding="utf-8"))
    return re.sub(r"(?m)^(\s+for:) \d+m$", r"\1 1s", text)


def panels() -> Iterator[tuple[str, str]]:
    """(panel's title, query), one for each query of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def metrics_named() -> set[str]:
    """Every metric that an alert or a panel names."""
    asked = [rule["expr"] for rule in alerts().values()] + [query for _, query in panels()]
    return {name for text in asked for name in METRIC.findall(text)}
