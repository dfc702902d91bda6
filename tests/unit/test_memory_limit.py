"""How much memory a process may use, out of files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vectorfleet import limits
from vectorfleet.memory_limit import admitted_bytes, memory_bytes

MACHINE = memory_bytes(Path("/nowhere"), Path("/nowhere"))
LOW, LOWER = 1 << 28, 1 << 27


def test_without_control_groups_it_is_the_machines() -> None:
    assert MACHINE > 1 << 28
    assert admitted_bytes(1000) == int(1000 * limits.MEMORY_SHARE)
    assert admitted_bytes() <= MACHINE * limits.MEMORY_SHARE


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        ("0::/\n", {"memory.max": str(LOW)}, LOW),
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": str(LOWER), "a/b/memory.max": str(LOW)}, LOWER),
        ("0::/host/path\n", {"memory.max": str(LOW)}, LOW),
        ("0::/\n", {"memory.max": "max"}, MACHINE),
        ("4:memory:/a\n2:cpu,cpuacct:/a\n", {"memory/a/memory.limit_in_bytes": str(LOW)}, LOW),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, MACHINE),
        ("nonsense\n", {"memory.max": "nonsense"}, MACHINE),
    ],
)
def test_it_is_the_least_of_the_groups_above_it(tmp_path: Path, own: str, files: dict[str, str], wanted: int) -> None:
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    assert memory_bytes(groups, tmp_path / "own") == wanted
