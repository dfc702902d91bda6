"""docs/errors.md, the protos' comments and `errors.REASONS` say the same.

After a change to the reasons, `python -m tests.unit.test_errors_doc` prints the table to paste into docs/errors.md.
"""

from __future__ import annotations

import re
from pathlib import Path

from vectorfleet import errors

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\s*//\s*\|(.+)\|\s*$")


def table() -> list[str]:
    rows = ["| reason | code | class | meaning | what the caller does |", "|---|---|---|---|---|"]
    for reason, row in errors.REASONS.items():
        raised = type(errors.error_for(reason, "")).__name__
        rows.append(f"| `{reason}` | `{row.code.name}` | `{raised}` | {row.meaning} | {row.action} |")
    return rows


def rows_of_protos() -> list[tuple[str, str, str]]:
    """(file, code, reason) of every row of every error table in the contract."""
    found = []
    for file in sorted((ROOT / "protos").rglob("*.proto")):
        for line in file.read_text(encoding="utf-8").splitlines():
            match = ROW.match(line)
            cells = [cell.strip() for cell in match[1].split("|")] if match else []
            if len(cells) == 4 and cells[0] != "condition" and set(cells[0]) != {"-"}:
                found.append((file.name, cells[1], cells[2]))
    return found


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    start = page.index(table()[0])
    shown = [line for line in page[start:] if line.startswith("|")]
    assert shown == table(), "run `python -m tests.unit.test_errors_doc` and paste what it prints into docs/errors.md"


def test_the_protos_name_only_reasons_that_exist_under_their_codes() -> None:
    rows = rows_of_protos()
    assert len(rows) > 20, "the tables in the protos' comments were not found"
    wrong = [row for row in rows if row[2] not in errors.REASONS or errors.REASONS[row[2]].code.name != row[1]]
    assert wrong == []


def test_every_reason_is_raised_somewhere() -> None:
    # gRPC itself raises these three; errors.py gives them their names.
    own = set(errors.REASONS) - {"UNREACHABLE", "UNIMPLEMENTED", "CANCELLED"}
    defaults = {error.default_reason for error in errors.VectorfleetError.__subclasses__()}
    text = "".join(
        file.read_text(encoding="utf-8")
        for package in ("vectorfleet", "router", "shard_server")
        for file in (ROOT / package).rglob("*.py")
        if file != Path(errors.__file__) and not file.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    )
    assert sorted(reason for reason in own - defaults if f'"{reason}"' not in text) == []


if __name__ == "__main__":
    print("\n".join(table()))
