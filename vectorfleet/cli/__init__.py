"""The command line: `vectorfleet up`, `load`, `search`, `status`, `create`, `delete`, `get`, `count`, `backup`, `restore`."""

from vectorfleet.cli.program import main

__all__ = ["main"]
