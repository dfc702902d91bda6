"""What tests of the manifests share: overlays rendered by the real kubectl, and the images' Dockerfile as data."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("dev", "prod", "external-etcd")
NAMESPACE = "vectorfleet"

Object = dict[str, Any]


def tool(name: str) -> str:
    """A program of the development environment."""
    return str(Path(sys.executable).with_name(name))


@functools.cache
def rendered_text(overlay: str) -> str:
    """What `kubectl apply -k` would send."""
    command = [tool("kubectl"), "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@functools.cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """The objects of an overlay. Not to be changed."""
    return tuple(yaml.safe_load_all(rendered_text(overlay)))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [one for one in rendered(overlay) if one["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    """One object."""
    (found,) = (one for one in of_kind(overlay, kind) if one["metadata"]["name"] == name)
    return found


def workloads(overlay: str) -> list[Object]:
    """What makes pods."""
    return of_kind(overlay, "StatefulSet", "Deployment")


def containers(overlay: str) -> Iterator[tuple[Object, Object, Object]]:
    """Workload, pod's spec, container."""
    for workload in workloads(overlay):
        pod = workload["spec"]["template"]["spec"]
        assert not pod.get("initContainers")
        for container in pod["containers"]:
            yield workload, pod, container


def ports_of(container: Object) -> dict[str, int]:
    """Name → number."""
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def probes_of(container: Object) -> dict[str, Object]:
    """Kind → probe."""
    return {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}


@dataclass
class Image:
    """One stage of the Dockerfile, with what it has from the stages that it is made from."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    """Build arguments of this stage alone, with their defaults."""
    entrypoint: list[str] = field(default_factory=list)
    user: str = "root"
    exposed: list[int] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    """Sources of COPY in the build context, of this stage and of those that it copies from."""
    ran: list[str] = field(default_factory=list)
    """RUN lines, likewise."""


@functools.cache
def images() -> dict[str, Image]:
    """The stages of k8s/Dockerfile by name. Reads as much of the language as the file uses, and refuses the rest."""
    lines = (K8S / "Dockerfile").read_text().splitlines()
    text = re.sub(r"\\\n", " ", "\n".join(line for line in lines if not line.lstrip().startswith("#")))
    stages: dict[str, Image] = {}
    stage = Image()
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.split()
            old = stages.get(base, Image())
            stage = stages[name] = Image(dict(old.environment), copied=list(old.copied), ran=list(old.ran))
        elif instruction == "ENV":
            stage.environment.update(pair.split("=", 1) for pair in shlex.split(rest))
        elif instruction == "ARG":
            name, _, default = rest.partition("=")
            stage.arguments[name] = default
        elif instruction == "ENTRYPOINT":
            stage.entrypoint = yaml.safe_load(rest)
        elif instruction == "USER":
            stage.user = rest
        elif instruction == "EXPOSE":
            stage.exposed.append(int(rest))
        elif instruction == "COPY" and rest.startswith("--from="):
            source = stages[rest.split()[0].removeprefix("--from=")]
            stage.copied += source.copied
            stage.ran += source.ran
        elif instruction == "COPY":
            stage.copied += rest.split()[:-1]
        elif instruction == "RUN":
            stage.ran.append(rest)
        else:
            assert instruction in ("LABEL", "WORKDIR", "STOPSIGNAL"), line
    return stages
