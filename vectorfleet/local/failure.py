"""The one exception of this package: a local cluster cannot be started or reached; the message says what to do."""

from __future__ import annotations


class LocalClusterError(Exception):
    """A local cluster cannot be started; the message is for people and names the log or the command that helps."""
