"""Backups: shards copied to a directory or an object store, and back. docs/decisions/0008-backups.md has the layout."""
