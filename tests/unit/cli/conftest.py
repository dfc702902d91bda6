"""A command line that talks to a fake cluster, with a state folder of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit.client.fake import FakeCluster
from tests.unit.client.fixtures import fake
from vectorfleet.cli import main

__all__ = ["fake"]

Run = Callable[..., Result]
Told = Callable[..., Any]


@pytest.fixture
def run(fake: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command and checks its exit code: 0 unless the test says otherwise."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("VECTORFLEET_ADDRESS", fake.address)

    def call(*arguments: str, code: int = 0, **options: Any) -> Result:
        done = CliRunner().invoke(main, list(arguments), prog_name="vectorfleet", **options)
        assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
        assert "Traceback" not in done.output
        return done

    return call


@pytest.fixture
def told(run: Run) -> Told:
    """Runs a command with --json, and reads what it says."""
    return lambda *arguments: json.loads(run(*arguments, "--json").stdout)
