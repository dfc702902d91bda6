"""What policy scanners say of the manifests and the Dockerfile: nothing that is not explained in k8s/policy-findings.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import K8S, OVERLAYS, rendered, rendered_text, tool

CHECKOV = Path(sys.prefix) / "policy" / "bin" / "checkov"
FINDINGS = K8S / "policy-findings.yaml"

Finding = tuple[str, str]


def scan(folder: Path) -> tuple[set[Finding], int]:
    """Runs checkov over a folder's manifests and Dockerfile: (check, Kind/name) of what it finds, and how much it passed."""
    assert CHECKOV.exists(), f"{CHECKOV} is missing: `make test` installs it"
    command = [str(CHECKOV), "--directory", str(folder), "--framework", "kubernetes", "dockerfile", "--output", "json"]
    # Without a network it would look for its platform's policies until it gives up.
    environment = {**os.environ, "LOG_LEVEL": "ERROR", "PYTHONPATH": ""}
    done = subprocess.run(
        [*command, "--compact", "--skip-download"],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    reports: list[dict[str, Any]] = told if isinstance(told, list) else [told]
    found = {
        (one["check_id"], _object(one["resource"])) for report in reports for one in report["results"]["failed_checks"]
    }
    assert all(report["summary"]["parsing_errors"] == 0 for report in reports)
    return found, sum(report["summary"]["passed"] for report in reports)


def _object(resource: str) -> str:
    if resource.startswith("/"):
        return "Dockerfile"
    kind, *_, name = resource.split(".")
    return f"{kind}/{name}"


def test_every_finding_is_explained_and_every_explanation_is_needed(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(rendered_text(overlay))
    (tmp_path / "Dockerfile").write_text((K8S / "Dockerfile").read_text())
    # Something that must be found, so that a scan that sees nothing is not taken for a clean one.
    (tmp_path / "bad.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "bad", "namespace": "vectorfleet"},
                "spec": {"containers": [{"name": "bad", "image": "x:1", "securityContext": {"privileged": True}}]},
            }
        )
    )
    found, passed = scan(tmp_path)
    bad = {finding for finding in found if finding[1] == "Pod/bad"}
    assert ("CKV_K8S_16", "Pod/bad") in bad, "privileged"
    assert passed > 500
    explained = {(one["check"], name) for one in yaml.safe_load(FINDINGS.read_text()) for name in one["objects"]}
    assert found - bad == explained


def test_every_explanation_says_why() -> None:
    names = {f"{one['kind']}/{one['metadata']['name']}" for overlay in OVERLAYS for one in rendered(overlay)}
    for one in yaml.safe_load(FINDINGS.read_text()):
        assert len(one["reason"]) > 60
        assert set(one["objects"]) <= names | {"Dockerfile"}


@pytest.mark.parametrize(("text", "code"), [((K8S / "Dockerfile").read_text(), 0), ("FROM python\n", 1)])
def test_the_dockerfile_passes_its_linter(text: str, code: int) -> None:
    done = subprocess.run(
        [tool("hadolint"), "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout
