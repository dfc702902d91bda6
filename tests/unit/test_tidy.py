"""Rules on the source that no linter knows. Each is a function from a file to its complaints, and is seen to complain."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSES = ("vectorfleet", "router", "shard_server", "loadtest", "protos", "tests")
LINES_MAX = 450
FORBIDDEN_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "manager", "misc"})
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


class Source(NamedTuple):
    """A file as the rules see it."""

    path: str
    text: str


def generated(path: str) -> bool:
    return path.startswith(("vectorfleet/v1/", "vectorfleet/internal/"))


def sources(*suffixes: str) -> list[Source]:
    files = [file for house in HOUSES for file in (ROOT / house).rglob("*")] + list(ROOT.glob("*"))
    files += [file for folder in ("docs", "k8s", ".ci") for file in (ROOT / folder).rglob("*")]
    found = [
        Source(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
        for file in files
        if file.suffix in suffixes and file.is_file() and "__pycache__" not in file.parts
    ]
    return sorted(source for source in found if not generated(source.path))


def lacks_docstring(source: Source) -> list[str]:
    if not source.text.strip() or ast.get_docstring(ast.parse(source.text)):
        return []
    return ["the module has no docstring"]


def vague_name(source: Source) -> list[str]:
    words = {word for part in Path(source.path).with_suffix("").parts for word in part.strip("_").split("_")}
    return [f"'{word}' says nothing: name the idea" for word in sorted(words & FORBIDDEN_NAMES)]


def too_long(source: Source) -> list[str]:
    lines = source.text.count("\n")
    return [f"{lines} lines, over {LINES_MAX}: which idea in it wants a room of its own?"] if lines > LINES_MAX else []


def prints(source: Source) -> list[str]:
    if source.path.startswith(("vectorfleet/cli/", "loadtest/", "protos/", "tests/")):
        return []
    # A server prints the one line by which its launcher learns the port.
    allowed = 1 if Path(source.path).name == "__main__.py" else 0
    calls = [
        node
        for node in ast.walk(ast.parse(source.text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    return [f"line {call.lineno}: print() outside the command line" for call in calls[allowed:]]


def sleeps(source: Source) -> list[str]:
    if not source.path.startswith("tests/"):
        return []
    complaints = []
    for node in ast.walk(ast.parse(source.text)):
        taken = isinstance(node, ast.ImportFrom) and node.module == "time" and "sleep" in {a.name for a in node.names}
        called = isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node.value) == "time"
        if taken or called:
            complaints.append(f"line {getattr(node, 'lineno', 0)}: a test waits for a condition, never for a time")
    return complaints


def unfinished(source: Source) -> list[str]:
    lines = enumerate(source.text.splitlines(), 1)
    return [f"line {number}: {line.strip()}" for number, line in lines if UNFINISHED.search(line)]


def dead_links(source: Source) -> list[str]:
    folder = (ROOT / source.path).parent
    targets = (
        target for target in LINK.findall(source.text) if "://" not in target and not target.startswith("mailto:")
    )
    return [f"the link to {target} leads nowhere" for target in targets if not (folder / target).exists()]


Rule = Callable[[Source], list[str]]
PYTHON_RULES: list[Rule] = [lacks_docstring, vague_name, too_long, prints, sleeps, unfinished]


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_sources_keep_the_rule(rule: Rule) -> None:
    checked = sources(".py")
    assert len(checked) > 50, "the sources were not found"
    assert [f"{source.path}: {complaint}" for source in checked for complaint in rule(source)] == []


@pytest.mark.parametrize("rule", [unfinished, dead_links], ids=lambda rule: rule.__name__)
def test_pages_and_protos_keep_the_rule(rule: Rule) -> None:
    checked = sources(".md", ".proto", ".yaml", ".toml")
    assert checked, "the pages were not found"
    assert [f"{source.path}: {complaint}" for source in checked for complaint in rule(source)] == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (lacks_docstring, "router/merge.py", "import os\n"),
        (vague_name, "router/merge_utils.py", ""),
        (vague_name, "shard_server/common/files.py", ""),
        (too_long, "router/merge.py", "\n" * (LINES_MAX + 1)),
        (prints, "router/merge.py", "print('here')\n"),
        (prints, "router/__main__.py", "print('ready')\nprint('again')\n"),
        (sleeps, "tests/unit/test_x.py", "import time\ntime.sleep(1)\n"),
        (sleeps, "tests/unit/test_x.py", "from time import sleep\n"),
        (unfinished, "router/merge.py", "# TO" + "DO: later\n"),
        (dead_links, "docs/errors.md", "[see](nowhere.md#part)"),
    ],
)
def test_each_rule_can_complain(rule: Rule, path: str, text: str) -> None:
    assert rule(Source(path, text))
