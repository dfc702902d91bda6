"""Where an interrupted load goes on: a small file that says how many rows of which file are in which collection.

It lies in the user's state folder, not beside the file: data folders are often read-only or shared. It counts only while the file
(size, time of change), the collection (its uid) and the fields are those that it was written for; otherwise, and where it is
damaged, loading starts over, which is right too, since writes are idempotent. Written after rows were acknowledged, hence
never ahead of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from vectorfleet.cli.rows import Fields


def state_folder(environment: Mapping[str, str]) -> Path:
    """Returns the folder of bookmarks: below XDG_STATE_HOME, as the XDG base directory specification has it."""
    state = environment.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "vectorfleet" / "loads"


class Bookmark:
    """How far one file has been loaded into one collection.

    Args:
        folder: of all bookmarks; made when it is needed.
        file: the file that is loaded.
        collection_uid: the collection; a new one of the same name has another uid.
        fields: how the file is read.
    """

    def __init__(self, folder: Path, file: Path, collection_uid: str, fields: Fields) -> None:
        source = file.resolve()
        stat = source.stat()
        key = hashlib.sha256(f"{source}\0{collection_uid}".encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = folder / f"{key}.json"
        self._about = {
            "file": str(source),
            "size_bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "collection_uid": collection_uid,
            "fields": json.loads(json.dumps(asdict(fields))),
        }

    def rows(self) -> int:
        """Returns how many rows are loaded; 0 where nothing is known."""
        try:
            content = json.loads(self.path.read_bytes())
            rows = content.pop("rows")
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return 0
        return rows if content == self._about and isinstance(rows, int) and rows >= 0 else 0

    def write(self, rows: int) -> None:
        """Notes that so many rows are loaded; raises `OSError` where the folder cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**self._about, "rows": rows}))
        temporary.replace(self.path)

    def clear(self) -> None:
        """Forgets, since all is loaded."""
        with contextlib.suppress(OSError):  # one that stays says less than there is, which costs time alone
            self.path.unlink(missing_ok=True)
