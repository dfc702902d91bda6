"""Generates the Python code of the contract; with --check, says whether the committed code is current.

The proto path is the Python path: `protos/vectorfleet/v1/*.proto` becomes `vectorfleet/v1/*_pb2.py`, so that generated
code imports as `vectorfleet.v1`. Type stubs (`.pyi`) come from mypy-protobuf.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGES = ("vectorfleet/v1", "vectorfleet/internal")


def generate(destination: Path) -> None:
    """Writes the generated tree below `destination`."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{well_known}",
        *plugins,
        f"--python_out={destination}",
        f"--mypy_out=quiet:{destination}",
        *sources,
    ]
    services = [source for source in sources if source.endswith("_service.proto")]
    with_grpc = [
        "protoc",
        f"-I{ROOT}",
        f"-I{well_known}",
        *plugins,
        f"--grpc_python_out={destination}",
        f"--mypy_grpc_out=quiet:{destination}",
        *services,
    ]
    for command in (arguments, with_grpc):
        if protoc.main(command) != 0:
            raise SystemExit("protoc failed")
    for package in PACKAGES:
        for folder in [destination / package, *(path for path in (destination / package).rglob("*") if path.is_dir())]:
            (folder / "__init__.py").write_text(
                f'"""Generated from protos/{folder.relative_to(destination)}: do not edit."""\n'
            )


def differing(left: Path, right: Path) -> list[str]:
    """Names the files below two folders that differ or stand in one of them alone."""
    names = {
        str(path.relative_to(side))
        for side in (left, right)
        for path in side.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        name
        for name in names
        if not (left / name).exists()
        or not (right / name).exists()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> None:
    """Regenerates, or checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where the committed code is not current"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        stale: list[str] = []
        for package in PACKAGES:
            stale += [f"{package}/{name}" for name in differing(fresh / package, ROOT.parent / package)]
            if not check:
                shutil.rmtree(ROOT.parent / package, ignore_errors=True)
                shutil.copytree(fresh / package, ROOT.parent / package)
    if check and stale:
        raise SystemExit("generated code is not current; run `make proto`:\n  " + "\n  ".join(stale))


if __name__ == "__main__":
    main()
