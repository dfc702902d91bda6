"""Pods as processes: the very command, arguments, environment and probes that a rendered overlay names.

What Kubernetes would provide is put in its place, and nothing else is changed: each pod has a loopback address of its own
(so that ports are the manifests' too), names of pods become those addresses, mounted paths become folders, `$(NAME)` and the
downward API are expanded as the kubelet does. A pod's folders stay when it ends, as its volume does.
"""

from __future__ import annotations

import http.client
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import authority
from tests.k8s.manifests import NAMESPACE, ROOT, Object, images, named, ports_of, probes_of, workloads
from vectorfleet.authority import Authority, Subject
from vectorfleet.local.etcd_binary import etcd_binary


class Expander:
    """An overlay's containers as a kubelet sees them: environment and arguments of one pod."""

    def __init__(self, overlay: str) -> None:
        self.overlay = overlay
        self.workloads = {one["metadata"]["name"]: one for one in workloads(overlay)}

    def pod(self, workload: str) -> Object:
        """The pod's spec."""
        return dict(self.workloads[workload]["spec"]["template"]["spec"])

    def container(self, workload: str) -> Object:
        """Its only container."""
        (container,) = self.pod(workload)["containers"]
        return dict(container)

    def environment(self, workload: str, pod_name: str) -> dict[str, str]:
        """The variables that the manifest names; the image's own are not among them."""
        container = self.container(workload)
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found.update(named(self.overlay, "ConfigMap", source["configMapRef"]["name"])["data"])
        fields = {"metadata.name": pod_name, "metadata.namespace": NAMESPACE}
        for variable in container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = _expanded(variable["value"], found)
            elif "fieldRef" in variable["valueFrom"]:
                found[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                wanted = variable["valueFrom"]["resourceFieldRef"]
                assert wanted["containerName"] == container["name"]
                kind, _, resource = wanted["resource"].partition(".")
                found[variable["name"]] = str(whole(container["resources"][kind][resource]))
        return found

    def command_line(self, workload: str, pod_name: str) -> tuple[list[str], dict[str, str]]:
        """The container's arguments, and its environment."""
        environment = self.environment(workload, pod_name)
        return [_expanded(argument, environment) for argument in self.container(workload)["args"]], environment


ADMIN_KEY = "0123456789abcdef" * 4


class Pod:
    """One pod of a `PodCluster`: a process that can be started, probed and stopped again and again."""

    def __init__(self, cluster: PodCluster, workload: str, name: str, address: str) -> None:
        self.name = name
        self.workload = workload
        self.address = address
        self._cluster = cluster
        self._container = cluster.expander.container(workload)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = cluster.folder / name
        self._root = self._folder / "root"
        self._log = self._folder / "log"
        self._root.mkdir(parents=True)
        for mount in self._container["volumeMounts"]:
            (self._folder / mount["name"]).mkdir()

    def give_certificate(self, signer: Authority, addresses: Sequence[str]) -> None:
        """Puts into its volume `tls` what the Secret holds, where it mounts one."""
        folder = self._folder / "tls"
        if folder.is_dir():
            uri = "" if self.workload == "etcd" else f"spiffe://vectorfleet/{self.workload}"
            certificate, key = signer.issue(Subject(self.workload, uri), addresses)
            for name, content in (("ca.crt", signer.certificate_pem), ("tls.crt", certificate), ("tls.key", key)):
                (folder / name).write_bytes(content)

    def give_admin_key(self) -> None:
        """The same for its volume `access`."""
        folder = self._folder / "access"
        if folder.is_dir():
            (folder / "admin.key").write_text(ADMIN_KEY)

    def start(self) -> None:
        """Starts the container's process."""
        image = images().get(self.workload)
        program, *rest = self._container.get("command") or (image.entrypoint if image else [])
        program = {"python": sys.executable, "/usr/local/bin/etcd": str(etcd_binary())}[program]
        arguments, environment = self._cluster.expander.command_line(self.workload, self.name)
        environment = {**(_of_this_machine(image.environment) if image else {}), **environment}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *rest, *map(self._here, arguments)],
                env={name: self._here(value) for name, value in environment.items()},
                cwd=self._root,
                stdout=log,
                stderr=log,
            )

    def probe(self, kind: str) -> bool:
        """Runs the startup, liveness or readiness probe once, as the kubelet does."""
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended: {self.log()}"
        probe = probes_of(self._container)[kind]
        timeout_s = float(probe["timeoutSeconds"])
        if "grpc" in probe:
            return self._ask_health(probe["grpc"]["port"], probe["grpc"]["service"], timeout_s)
        return self._get(ports_of(self._container)[probe["httpGet"]["port"]], probe["httpGet"]["path"], timeout_s)

    def stop(self) -> int:
        """SIGTERM, and then no longer than the grace period that the pause before it leaves; returns the exit code."""
        assert self._process is not None
        pause_s = self._container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace_s = self._cluster.expander.pod(self.workload)["terminationGracePeriodSeconds"] - pause_s
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(grace_s)
        self._process = None
        return code

    def kill(self) -> None:
        """Ends it at once, where it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        """What it printed last."""
        return self._log.read_text(errors="replace")[-3000:]

    def written_outside_of_volumes(self) -> list[str]:
        """Files in the folder that it started in; in the pod, that is of the root file system, which is read-only."""
        return sorted(path.name for path in self._root.iterdir())

    def _here(self, text: str) -> str:
        """Names of pods, the wildcard address and mounted paths, each in its place on this machine; in one pass."""
        places: dict[str, str] = {}
        for pod in self._cluster.pods.values():
            places |= dict.fromkeys(
                (f"{pod.name}.{pod.workload}", f"{pod.name}.{pod.workload}.{NAMESPACE}.svc"), pod.address
            )
        places["0.0.0.0"] = self.address  # noqa: S104 (pods share this machine, and must not share their ports)
        places.update(
            {mount["mountPath"]: str(self._folder / mount["name"]) for mount in self._container["volumeMounts"]}
        )
        pattern = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])(?:{pattern})(?![\w.-])", lambda match: places[match[0]], text)

    def _ask_health(self, port: int, service: str, timeout_s: float) -> bool:
        with grpc.insecure_channel(f"{self.address}:{port}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return False
                raise
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _get(self, port: int, path: str, timeout_s: float) -> bool:
        connection = http.client.HTTPConnection(self.address, port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class PodCluster:
    """The pods of an overlay on this machine; none runs yet. As a context manager it leaves none behind."""

    def __init__(self, overlay: str, counts: Mapping[str, int], folder: Path) -> None:
        """Finds addresses.

        Args:
            overlay: whose manifests.
            counts: pods by workload.
            folder: of all their files.
        """
        self.expander = Expander(overlay)
        self.folder = folder
        ports = sorted({port for name in counts for port in ports_of(self.expander.container(name)).values()})
        names = {f"{workload}-{number}": workload for workload, count in counts.items() for number in range(count)}
        self.pods: dict[str, Pod] = {}
        for (name, workload), address in zip(names.items(), _free_addresses(len(names), ports), strict=True):
            self.pods[name] = Pod(self, workload, name, address)
        for pod in self.pods.values():
            # etcd also looks whether a member's certificate names the address that it comes from, here the plain loopback.
            pod.give_certificate(authority(), ["127.0.0.1", *(other.address for other in self.of(pod.workload))])
            pod.give_admin_key()

    def __enter__(self) -> PodCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.pods.values():
            pod.kill()

    def of(self, workload: str) -> list[Pod]:
        """The pods of one workload."""
        return [pod for pod in self.pods.values() if pod.workload == workload]


def _of_this_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """An image's variables, with its folders where they are here."""
    places = {"/app": str(ROOT), "$PATH": os.defpath, "/opt/vectorfleet/bin": str(Path(sys.executable).parent)}
    found = dict(environment)
    for there, here in places.items():
        found = {name: value.replace(there, here) for name, value in found.items()}
    return found


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], text)


def whole(quantity: Any) -> int:
    """A quantity of cores or of bytes as the downward API gives it: rounded up."""
    number, unit = re.fullmatch(r"(\d+)(\D*)", str(quantity)).groups()  # type: ignore[union-attr]
    return math.ceil(int(number) * {"": 1, "m": Fraction(1, 1000), "Mi": 2**20, "Gi": 2**30}[unit])


def _free_addresses(count: int, ports: Sequence[int]) -> list[str]:
    """Loopback addresses on which these ports are free; drawn, so that tests beside this one have others."""
    draw = random.SystemRandom()
    found: list[str] = []
    while len(found) < count:
        address = f"127.{draw.randint(1, 254)}.{draw.randint(0, 255)}.{draw.randint(2, 254)}"
        if address not in found and all(_is_free(address, port) for port in ports):
            found.append(address)
    return found


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((address, port)) != 0
