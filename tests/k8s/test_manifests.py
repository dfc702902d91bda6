"""The manifests of every overlay: valid, consistent in themselves, and in agreement with the code that they start."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from click.testing import CliRunner

from router import server as router_server
from router.arguments import PORT_DEFAULT
from router.arguments import parse as parse_router
from shard_server import hosting
from shard_server import node as shard_node
from shard_server.arguments import parse as parse_shard
from shard_server.backup import archive
from tests.k8s.manifests import (
    K8S,
    NAMESPACE,
    OVERLAYS,
    ROOT,
    Object,
    containers,
    images,
    named,
    of_kind,
    ports_of,
    probes_of,
    rendered,
    workloads,
)
from tests.k8s.pods import Expander, whole
from vectorfleet import limits, serving
from vectorfleet.cli import main as cli
from vectorfleet.local.etcd_binary import etcd_binary

OLDEST, NEWEST = "1.30", "1.37"
SECRETS = {"backup-credentials", "etcd-client", "router-admin-key", "router-tls", "shard-tls", "etcd-tls"}
"""Made by the operator: docs/operations.md names them."""
WITHOUT_A_NAMESPACE = {"Namespace", "PriorityClass"}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def selected(overlay: str, labels: dict[str, str]) -> list[str]:
    """Names of the workloads whose pods have these labels."""
    carriers = ((one["metadata"]["name"], one["spec"]["template"]["metadata"]["labels"]) for one in workloads(overlay))
    return [name for name, carried in carriers if labels.items() <= carried.items()]


# ------------------------------------------------------------------ valid


@every_overlay
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_validates_against_the_published_schemas(overlay: str, version: str) -> None:
    assert len(rendered(overlay)) > 15
    for one in rendered(overlay):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_refuse_what_kubernetes_would() -> None:
    shard = copy.deepcopy(named("prod", "StatefulSet", "shard"))
    shard["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(shard, NEWEST, strict=True)


@every_overlay
def test_names_stand_once_and_everything_lies_in_our_namespace(overlay: str) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)]
    assert len(names) == len(set(names))
    for one in rendered(overlay):
        wanted = None if one["kind"] in WITHOUT_A_NAMESPACE else NAMESPACE
        assert one["metadata"].get("namespace") == wanted, one["metadata"]["name"]


# ------------------------------------------------------------------ consistent


@every_overlay
def test_every_reference_leads_somewhere(overlay: str) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)}
    for workload, pod, container in containers(overlay):
        assert ("ServiceAccount", pod["serviceAccountName"]) in there
        assert ("PriorityClass", pod["priorityClassName"]) in there
        for source in container["envFrom"]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in there
        assert {one["secret"]["secretName"] for one in pod.get("volumes", []) if "secret" in one} <= SECRETS
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        if workload["kind"] == "StatefulSet":
            service = named(overlay, "Service", workload["spec"]["serviceName"])
            assert service["spec"]["clusterIP"] == "None"
            assert service["spec"]["publishNotReadyAddresses"], "a node must be found before it is ready"
            assert workload["spec"]["podManagementPolicy"] == "Parallel", "none must wait for one that waits for it"
    for autoscaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        target = autoscaler["spec"]["scaleTargetRef"]
        assert "replicas" not in named(overlay, target["kind"], target["name"])["spec"], "two would set the number"


@every_overlay
def test_selectors_select_what_they_mean(overlay: str) -> None:
    for workload, _, container in containers(overlay):
        name = workload["metadata"]["name"]
        assert selected(overlay, workload["spec"]["selector"]["matchLabels"]) == [name]
        for spread in workload["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(overlay, spread["labelSelector"]["matchLabels"]) == [name]
        (budget,) = (one for one in of_kind(overlay, "PodDisruptionBudget") if one["metadata"]["name"] == name)
        assert selected(overlay, budget["spec"]["selector"]["matchLabels"]) == [name]
        services = [one for one in of_kind(overlay, "Service") if selected(overlay, one["spec"]["selector"]) == [name]]
        assert {one["metadata"]["name"] for one in services} <= {name, f"{name}-all"}
        for service in services:
            offered = {port["targetPort"]: port["port"] for port in service["spec"]["ports"]}
            unoffered = {"health", "metrics"}  # the kubelet's, who asks the pod itself
            assert offered == {port: number for port, number in ports_of(container).items() if port not in unoffered}
    assert all(len(selected(overlay, one["spec"]["selector"])) == 1 for one in of_kind(overlay, "Service"))


@pytest.mark.parametrize("overlay", ["prod", "external-etcd"])
def test_pods_are_spread_over_zones_and_machines(overlay: str) -> None:
    for workload, pod, _ in containers(overlay):
        name = workload["metadata"]["name"]
        spread = {one["topologyKey"]: one["whenUnsatisfiable"] for one in pod["topologySpreadConstraints"]}
        # A shard server's volume binds it to a zone: a rule could keep it from ever coming back.
        zone = "DoNotSchedule" if name == "etcd" else "ScheduleAnyway"
        machine = "ScheduleAnyway" if name == "router" else "DoNotSchedule"
        assert spread == {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": machine}


@every_overlay
def test_pods_are_restricted(overlay: str) -> None:
    namespace = named(overlay, "Namespace", NAMESPACE)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for one in of_kind(overlay, "ServiceAccount"):
        assert one["automountServiceAccountToken"] is False
    for _, pod, container in containers(overlay):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service's variables would be read as ours, or as etcd's"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 10_000
        assert pod["securityContext"]["fsGroup"] >= 10_000, "volumes and Secrets would be root's alone"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


# ------------------------------------------------------------------ traffic


Way = tuple[str, str | int]
STRANGERS = {
    "client": {"vectorfleet-client": "true"},
    "dns": {"k8s-app": "kube-dns"},
    "prometheus": {"app.kubernetes.io/name": "prometheus"},
    "other": {"app": "other"},
}


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod."""
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    named_values = all(labels.get(one["key"]) in one["values"] for one in expressions)
    return named_values and selector.get("matchLabels", {}).items() <= labels.items()


def ways(rules: list[Object], side: str, ours: dict[str, dict[str, str]]) -> set[Way]:
    """(pod, port) that rules let through; pods of other namespaces are met only where a rule names their namespace."""
    found: set[Way] = set()
    for rule in rules:
        for peer in rule[side]:
            if "ipBlock" in peer:
                names = ["outside"]
            else:
                pods = ours if "namespaceSelector" not in peer else ours | STRANGERS
                names = [name for name, labels in pods.items() if matches(peer["podSelector"], labels)]
            found |= {(name, port["port"]) for name in names for port in rule["ports"]}
    return found


def flows(overlay: str) -> set[tuple[str, str, int]]:
    """(from, to, port) that the policies let through, at both ends where both are ours."""
    ports = {one["metadata"]["name"]: ports_of(container) for one, _, container in containers(overlay)}
    ours = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in workloads(overlay)}
    into: dict[str, set[Way]] = {name: set() for name in ours}
    out: dict[str, set[Way]] = {name: set() for name in ours}
    closed: set[tuple[str, str]] = set()
    for policy in (one["spec"] for one in of_kind(overlay, "NetworkPolicy")):
        for name in ours:
            if matches(policy["podSelector"], ours[name]):
                into[name] |= ways(policy.get("ingress", []), "from", ours)
                out[name] |= ways(policy.get("egress", []), "to", ours)
                closed |= {(name, direction) for direction in policy["policyTypes"]}
    assert closed == {(name, direction) for name in ours for direction in ("Ingress", "Egress")}
    # A port in a rule may be a number, or a name that the target gives it.
    arriving = {(source, to, ports[to].get(str(port), port)) for to in into for source, port in into[to]}
    leaving = {(name, to, ports.get(to, {}).get(str(port), port)) for name in out for to, port in out[name]}
    return {
        (source, to, int(port))
        for source, to, port in arriving | leaving
        if (source not in ours or (source, to, port) in leaving) and (to not in ours or (source, to, port) in arriving)
    }


@every_overlay
def test_traffic_flows_from_clients_to_routers_to_shards_to_etcd_and_nowhere_else(overlay: str) -> None:
    wanted = {("client", "router", 7700), ("router", "shard", 7701), ("shard", "shard", 7701)}
    wanted |= {("router", "dns", 53), ("shard", "dns", 53)}
    wanted |= {("prometheus", "router", 7790), ("prometheus", "shard", 7790)}
    if overlay == "external-etcd":
        wanted |= {("router", "outside", 2379), ("shard", "outside", 2379), ("shard", "outside", 443)}
    else:
        wanted |= {("router", "etcd", 2379), ("shard", "etcd", 2379), ("etcd", "etcd", 2380), ("etcd", "dns", 53)}
    assert flows(overlay) == wanted


# ------------------------------------------------------------------ in agreement with the code


@every_overlay
def test_servers_understand_their_arguments(overlay: str) -> None:
    expand = Expander(overlay)
    shard = parse_shard(*expand.command_line("shard", "shard-1"))
    assert (shard.node_id, shard.advertise, shard.port) == ("shard-1", "shard-1.shard.vectorfleet.svc:7701", 7701)
    assert shard.search_threads == whole(expand.container("shard")["resources"]["requests"]["cpu"])
    (mount,) = (one for one in expand.container("shard")["volumeMounts"] if one["name"] == "data")
    assert shard.data.is_relative_to(mount["mountPath"])
    router = parse_router(*expand.command_line("router", "router-abc"))
    assert (router.router_id, router.port, router.embed_threads) == ("router-abc", PORT_DEFAULT, 1)
    for name in ("etcd", "etcd_prefix", "etcd_ca", "etcd_cert", "etcd_key"):
        assert getattr(router, name) == getattr(shard, name)
    assert (router.insecure, shard.insecure) == (overlay == "dev", overlay == "dev")
    assert (router.auth == "required") == (overlay != "dev")
    if overlay != "dev":
        (mount,) = (one for one in expand.container("router")["volumeMounts"] if one["name"] == "access")
        assert Path(router.admin_key_file).parent == Path(mount["mountPath"])
        for workload, parsed in (("router", router), ("shard", shard)):
            (mount,) = (one for one in expand.container(workload)["volumeMounts"] if one["name"] == "tls")
            files = (parsed.tls_ca, parsed.tls_cert, parsed.tls_key)
            assert [Path(file).parent for file in files] == [Path(mount["mountPath"])] * 3
            assert (not parsed.etcd_ca) == (overlay == "dev")
    if overlay == "external-etcd":
        assert shard.backup_root == ["s3://vectorfleet-backups/prod"]
        for workload in ("router", "shard"):
            (mount,) = (one for one in expand.container(workload)["volumeMounts"] if one["name"] == "etcd-client")
            for file in (router.etcd_ca, router.etcd_cert, router.etcd_key):
                assert Path(file).parent == Path(mount["mountPath"])
    else:
        members = named(overlay, "StatefulSet", "etcd")["spec"]["replicas"]
        assert router.etcd.split(",") == [f"etcd-{number}.etcd:2379" for number in range(members)]


@pytest.mark.parametrize(("workload", "parse"), [("router", parse_router), ("shard", parse_shard)])
def test_every_setting_is_one_that_the_server_reads(
    workload: str, parse: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    read = set(re.findall(r"\[env\s+(\w+)", capsys.readouterr().out))
    given = {name for overlay in OVERLAYS for name in Expander(overlay).environment(workload, f"{workload}-0")}
    assert {name for name in given if name.startswith("VECTORFLEET_")} <= read


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_etcd_knows_its_flags_and_its_members(overlay: str) -> None:
    done = subprocess.run([str(etcd_binary()), "--help"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+--([\w-]+)", done.stdout + done.stderr, re.MULTILINE))
    arguments, environment = Expander(overlay).command_line("etcd", "etcd-0")
    assert {argument.split("=")[0].removeprefix("--") for argument in arguments} <= known
    members = range(named(overlay, "StatefulSet", "etcd")["spec"]["replicas"])
    scheme = "http" if overlay == "dev" else "https"
    first = [f"etcd-{number}={scheme}://etcd-{number}.etcd:2380" for number in members]
    assert environment["ETCD_INITIAL_CLUSTER"].split(",") == first


@every_overlay
def test_probes_ask_what_the_servers_answer(overlay: str) -> None:
    for workload, _, container in containers(overlay):
        if workload["metadata"]["name"] != "etcd":
            port = ports_of(container)["health"]
            assert {kind: probe["grpc"] for kind, probe in probes_of(container).items()} == {
                "startup": {"port": port, "service": serving.LIVENESS},
                "liveness": {"port": port, "service": serving.LIVENESS},
                "readiness": {"port": port, "service": serving.READINESS},
            }


@every_overlay
def test_pods_tell_prometheus_where_they_serve_metrics(overlay: str) -> None:
    expand = Expander(overlay)
    for name, parse in (("router", parse_router), ("shard", parse_shard)):
        port = ports_of(expand.container(name))["metrics"]
        assert parse(*expand.command_line(name, f"{name}-0")).metrics_address == ("0.0.0.0", port)  # noqa: S104
        annotations = expand.workloads[name]["spec"]["template"]["metadata"]["annotations"]
        assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}


@every_overlay
def test_the_grace_period_is_longer_than_the_drain(overlay: str) -> None:
    expand = Expander(overlay)
    pause_s = expand.container("router")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = pause_s + router_server.DRAIN_S + router_server.RELEASE_TIMEOUT_S
    assert expand.pod("router")["terminationGracePeriodSeconds"] > 1.5 * drain_s
    pause_s = expand.container("shard")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = (
        pause_s + shard_node.DRAIN_S + archive.CLOSE_TIMEOUT_S + hosting.CLOSE_TIMEOUT_S + shard_node.RELEASE_TIMEOUT_S
    )
    assert expand.pod("shard")["terminationGracePeriodSeconds"] > 1.5 * drain_s


@pytest.mark.parametrize("overlay", ["prod", "external-etcd"])
def test_no_eviction_takes_the_last_copy_of_a_shard(overlay: str) -> None:
    budget = named(overlay, "PodDisruptionBudget", "shard")["spec"]
    assert budget["maxUnavailable"] <= limits.REPLICAS_MAX - 1
    assert "unhealthyPodEvictionPolicy" not in budget, "one that is not ready may still serve what it holds"


@every_overlay
def test_shards_are_updated_one_at_a_time_and_keep_their_volumes(overlay: str) -> None:
    spec = named(overlay, "StatefulSet", "shard")["spec"]
    wanted = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
    assert spec["updateStrategy"] == wanted, "one, and the next when that is ready; a partition set by hand is undone"
    assert spec["minReadySeconds"] > 0
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_sizing_component_is_what_its_command_writes(tmp_path: Path) -> None:
    written = (K8S / "overlays" / "prod" / "sizing" / "kustomization.yaml").read_text()
    (command,) = re.findall(r"^#   vectorfleet (sizing .*) --write FOLDER$", written, re.MULTILINE)
    done = CliRunner().invoke(cli, [*shlex.split(command), "--write", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "kustomization.yaml").read_text() == written


def test_the_sizing_component_sets_the_overlays_numbers() -> None:
    shard = named("prod", "StatefulSet", "shard")["spec"]
    (volume,) = shard["volumeClaimTemplates"]
    resources = shard["template"]["spec"]["containers"][0]["resources"]
    assert (shard["replicas"], resources["requests"]["memory"]) == (5, "14592Mi")
    assert resources["limits"] == {"memory": "14592Mi"}
    assert volume["spec"]["resources"]["requests"]["storage"] == "111616Mi"


# ------------------------------------------------------------------ the images


@pytest.mark.parametrize(("name", "package"), [("shard", "shard_server"), ("router", "router")])
def test_an_image_holds_its_server_and_starts_it_without_rights(name: str, package: str) -> None:
    image = images()[name]
    assert image.entrypoint == ["python", "-m", package]
    assert set(image.copied) == {"pyproject.toml", "requirements.lock", "README.md", "LICENSE", "vectorfleet", package}
    (workload,) = (one for one in workloads("prod") if one["metadata"]["name"] == name)
    pod: dict[str, Any] = workload["spec"]["template"]["spec"]
    assert image.user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert image.exposed == list(ports_of(pod["containers"][0]).values())


def test_the_builder_gets_what_the_images_copy_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert admitted == set(images()["shard"].copied) | set(images()["router"].copied)
    assert all((ROOT / path).exists() for path in admitted)
