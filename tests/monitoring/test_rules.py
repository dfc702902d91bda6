"""Alert rules and dashboard without a cluster: sound, tested with series written down, and in step with code and docs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests import NAMESPACE, ROOT, tool
from tests.monitoring import prometheus_package, rules
from tests.monitoring.prometheus_package import NotObtainable, program
from tests.unit.test_metrics_doc import families

OPERATIONS = ROOT / "docs" / "operations.md"
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_are_sound_also_when_they_are_hurried(tmp_path: Path) -> None:
    hurried = tmp_path / "hurried.yaml"
    hurried.write_text(rules.hurried("6s"))
    for file in (rules.ALERTS, hurried):
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))
        assert done.returncode == 0, done.stdout + done.stderr
    waits = [rule["for"] for group in yaml.safe_load(hurried.read_text())["groups"] for rule in group["rules"]]
    assert set(waits) == {"1s"}
    assert not re.search(r"\[\d+[mh]\]", hurried.read_text())


def test_each_alert_fires_for_what_it_is_for_and_for_nothing_else() -> None:
    stories = Path(__file__).with_name("alerts_test.yaml")
    done = promtool("test", "rules", str(stories))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r'alertname="(\w+)"', stories.read_text())) == rules.alerts().keys()


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    there = set(OF_THE_PROCESS)
    for one in families():
        there |= {one.name + end for end in ("_bucket", "_sum", "_count")} if one.kind == "histogram" else {one.name}
    assert rules.metrics_named() - there == set()
    assert len(rules.metrics_named()) > 25, "they were not found"


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    board = json.loads(rules.DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) >= 20
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}, "no one's own Prometheus"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["targets"] and all(one["legendFormat"] for one in panel["targets"]) for panel in panels)


def test_every_alert_has_its_line_for_the_operator_and_a_severity() -> None:
    rows = re.findall(r"^\| `(Vectorfleet\w+)` \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == list(rules.alerts())
    for name, rule in rules.alerts().items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"], name


def test_the_settings_for_prometheus_are_settings_and_the_config_maps_hold_the_files(tmp_path: Path) -> None:
    settings = yaml.safe_load((rules.FOLDER / "scrape.yaml").read_text())
    (job,) = settings["scrape_configs"]
    # Debian builds Prometheus without the discovery of Kubernetes: the rest of the job is checked.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": [NAMESPACE]}}]
    (tmp_path / "alerts.yaml").write_text(rules.ALERTS.read_text())
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings | {"rule_files": ["alerts.yaml"]}))
    done = promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    command = [tool("kubectl"), "kustomize", str(rules.FOLDER)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    held = {key: value for one in yaml.safe_load_all(made) for key, value in one["data"].items()}
    assert held == {file.name: file.read_text() for file in (rules.ALERTS, rules.DASHBOARD)}


def test_a_machine_without_prometheus_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_package, "FOLDER", tmp_path / ".make" / "prometheus")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotObtainable, match=r"Install Debian's package prometheus, or put .* into PATH"):
        program("promtool")
