"""docs/overload.md names each bound with the number that the code has."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

ROW = re.compile(r"^\|[^|]+\| `([\w.]+)\.(\w+)` \| ([\d.]+)", re.MULTILINE)


def test_the_bounds_are_those_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "overload.md").read_text(encoding="utf-8")
    rows = ROW.findall(page)
    assert len(rows) > 10, "the table was not found"
    for module, name, number in rows:
        assert getattr(importlib.import_module(module), name) == float(number), f"{module}.{name}"
