"""The command line: `vectorfleet up`, `load`, `search`, `status`, `create`, `delete`, `get`, `count`."""

from vectorfleet.cli.program import main

__all__ = ["main"]
