"""A real Prometheus that scrapes a cluster every half second and evaluates rules as often."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.waiting import until
from tests.monitoring.prometheus_package import program
from vectorfleet.local.ports import free_ports

INTERVAL: Final = "500ms"
TIMEOUT_S: Final = 10.0


class Prometheus:
    """Asks a running one."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API."""
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            return json.load(connection.getresponse()).get("data")

    def ask(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """The series that a query has now, with their labels; those that are no number are left out."""
        result = self.get("/api/v1/query", query=query)["result"]
        found = [(one["metric"], float(one["value"][1])) for one in result]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {labels["alertname"] for labels, _ in self.ask('ALERTS{alertstate="firing"}')}


@contextlib.contextmanager
def prometheus(folder: Path, rules: str, jobs: Mapping[str, Mapping[str, str]]) -> Iterator[Prometheus]:
    """Runs one.

    Args:
        folder: for its data and configuration.
        rules: a file of rules.
        jobs: job → instance → host:port.
    """
    folder.mkdir()
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    scrapes = [
        {
            "job_name": job,
            "static_configs": [
                {"targets": [address], "labels": {"instance": instance}} for instance, address in targets.items()
            ],
        }
        for job, targets in jobs.items()
    ]
    settings = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yaml"],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with _running(command, folder / "log"):
        one = Prometheus(address)
        until(lambda: one.get("/api/v1/status/runtimeinfo"), what="Prometheus answers")
        yield one


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
