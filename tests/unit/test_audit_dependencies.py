"""What the dependency audit makes of pip-audit's reports: an answer, no answer, a finding."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit_dependencies.py"
CLEAN = {"name": "numpy", "version": "2.0.0", "vulns": []}
UNKNOWN = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.0.0)"}
VULNERABLE = {"name": "requests", "version": "2.31.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.32.0"]}]}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with an environment of its own to leave its stamp in."""
    spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    monkeypatch.delenv("AUDIT", raising=False)
    return module


def answering(monkeypatch: pytest.MonkeyPatch, audit: Any, probe: Any, lock: Any) -> list[str]:
    """Lets pip-audit answer for the probe and for the lock; returns what is asked."""
    asked: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[-1].partition("=")[2]).read_text()
        asked.append(requirements)
        answer = probe if requirements == audit.PROBE else lock
        text = answer if isinstance(answer, str) else json.dumps({"dependencies": [answer], "fixes": []})
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(audit.subprocess, "run", run)
    return asked


def test_a_clean_lock_is_asked_about_once_a_day(
    monkeypatch: pytest.MonkeyPatch, audit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answering(monkeypatch, audit, VULNERABLE, CLEAN)
    assert [audit.main(), audit.main()] == [0, 0]
    assert len(asked) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("probe", [UNKNOWN, CLEAN, "", "no JSON"])
def test_no_answer_is_not_taken_for_a_clean_one(
    monkeypatch: pytest.MonkeyPatch, audit: Any, capsys: pytest.CaptureFixture[str], probe: Any
) -> None:
    asked = answering(monkeypatch, audit, probe, CLEAN)
    assert audit.main() == 0
    assert "NOT AUDITED" in capsys.readouterr().err
    assert audit.main() == 0
    assert "NOT AUDITED" in capsys.readouterr().err, "every time, until there is an answer"
    assert asked == [audit.PROBE] * 2
    monkeypatch.setenv("AUDIT", "required")
    assert audit.main() == 1


def test_a_vulnerability_fails_and_is_named(
    monkeypatch: pytest.MonkeyPatch, audit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, audit, VULNERABLE, VULNERABLE)
    assert audit.main() == 1
    assert "requests 2.31.0: PYSEC-1, fixed in 2.32.0" in capsys.readouterr().err
    assert audit.main() == 1
    audit.ACCEPTED["PYSEC-1"] = "a reason"
    assert audit.main() == 0


def test_a_package_that_the_service_does_not_know_is_named(
    monkeypatch: pytest.MonkeyPatch, audit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, audit, VULNERABLE, UNKNOWN)
    assert audit.main() == 0
    assert "not audited, PyPI does not know it: numpy" in capsys.readouterr().err
