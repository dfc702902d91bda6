"""docs/guarantees.md names the test that holds each promise: those tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_every_promise_is_held_by_tests_that_exist() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    promises = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(promises) >= 9
    for promise in promises:
        held = NAMED.findall(promise)
        assert held, f"no test holds {promise.splitlines()[0]!r}"
        for path, function in held:
            source = (ROOT / path).read_text(encoding="utf-8")
            defined = {
                node.name
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert not function or function in defined, f"{path} has no {function}"
