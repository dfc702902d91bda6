"""A sizing plan as a Kustomize component: replicas, resources and volume of the shard servers, and nothing else.

The folder belongs to the command that writes it: it holds one file, which says how it was made and is replaced whole. An
overlay takes it in with `components: [sizing]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vectorfleet.sizing import Plan

FILE: Final = "kustomization.yaml"
_MARK: Final = "# Written by `vectorfleet sizing`"
_MIB: Final = 1 << 20


class ForeignFileError(Exception):
    """The folder holds a kustomization that this module did not write; the message says which."""


def write_overlay(folder: Path, plan: Plan, command: str) -> Path:
    """Writes the component; makes the folder where it is missing.

    Args:
        folder: of the component.
        plan: the numbers.
        command: the command line that makes the same plan again.

    Returns:
        The file.

    Raises:
        ForeignFileError: the file there is somebody else's. It is left as it is.
    """
    path = folder / FILE
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_MARK):
        raise ForeignFileError(f"{path} was not written by this command: name a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(overlay(plan, command), encoding="utf-8")
    return path


def overlay(plan: Plan, command: str) -> str:
    """The component's YAML."""
    memory, volume = f"{plan.memory_bytes // _MIB}Mi", f"{plan.volume_bytes // _MIB}Mi"
    return f"""{_MARK}; change the demand and write it again rather than edit this file:
#   {command} --write FOLDER
# {plan.demand.points:,} points of {plan.demand.dim:,} dimensions: create the collection with {plan.shards:,} shards.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
  - target:
      kind: StatefulSet
      name: shard
    patch: |-
      - op: replace
        path: /spec/replicas
        value: {plan.nodes}
      - op: replace
        path: /spec/template/spec/containers/0/resources
        value:
          requests:
            cpu: {plan.machine.cores * 900}m
            memory: {memory}
          limits:
            memory: {memory}
      - op: replace
        path: /spec/volumeClaimTemplates/0/spec/resources/requests/storage
        value: {volume}
"""
