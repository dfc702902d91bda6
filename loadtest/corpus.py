"""A text corpus that every machine has: the docstrings of the installed Python's standard library.

Read from the source files with `ast`: nothing is imported, so nothing runs. The same Python gives the same texts in the
same order.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED = frozenset(
    {"antigravity", "distutils", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
)
"""Tests, jokes, an editor, what is about to go, toolkits whose docstrings repeat one another."""
CHARACTERS_MAX = 320
"""A text is cut at the last paragraph, or word, that ends before this."""
CHARACTERS_MIN = 20

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Passage:
    """One docstring."""

    name: str
    """As one would import it: `argparse.ArgumentParser.parse_args`."""
    kind: str
    """module, class or function."""
    text: str

    @property
    def headline(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]


def standard_library(limit: int | None = None) -> list[Passage]:
    """Collects the docstrings of all public modules, classes and functions.

    Args:
        limit: at most so many, spread evenly over the library; None: all.

    Returns:
        Passages in the order of their names; no name and no text stands twice.
    """
    by_text: dict[str, Passage] = {}
    for module, path in _modules():
        for passage in _passages(module, path):
            by_text.setdefault(passage.text, passage)
    by_name = {passage.name: passage for passage in reversed(by_text.values())}
    found = sorted(by_name.values(), key=lambda passage: passage.name)
    if limit is None or limit >= len(found):
        return found
    return [found[position * len(found) // limit] for position in range(limit)]


def _modules() -> Iterator[tuple[str, Path]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if name.startswith("_"):
            continue
        if (library / f"{name}.py").is_file():
            yield name, library / f"{name}.py"
        for path in sorted((library / name).rglob("*.py")):
            parts = path.relative_to(library).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            hidden = any(part.startswith("_") or part in ("test", "tests") for part in parts)
            if not hidden and "site-packages" not in parts:
                yield ".".join(parts), path


def _passages(module: str, path: Path) -> Iterator[Passage]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _documented(tree, module)


def _documented(node: _Documented, name: str) -> Iterator[Passage]:
    docstring = ast.get_docstring(node)
    text = _cut(docstring) if docstring else ""
    if len(text) >= CHARACTERS_MIN:
        kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
        yield Passage(name=name, kind=kind, text=text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith(
                "_"
            ):
                yield from _documented(inner, f"{name}.{inner.name}")


def _cut(docstring: str) -> str:
    text = docstring.strip()
    if len(text) <= CHARACTERS_MAX:
        return text
    head = text[:CHARACTERS_MAX]
    paragraph = head.rfind("\n\n")
    if paragraph >= CHARACTERS_MAX // 3:
        return head[:paragraph].rstrip()
    return head[: max(head.rfind(" "), head.rfind("\n"), 1)].rstrip()
