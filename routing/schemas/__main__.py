"""Writes the files made from the schemas and manifests: ``python -m routing.schemas [ROOT]``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from routing.schemas.definitions import DEFINITIONS, document, render
from routing.schemas.reference import reference

MANIFESTS = Path("manifests")


def files(root: Path) -> Mapping[str, str]:
    """Path in the project -> text, of every file that is made and not written."""
    made = {f"{MANIFESTS}/crds/{each.file_name}": render(each) for each in DEFINITIONS}
    made[f"{MANIFESTS}/install.yaml"] = _install(root, made)
    made["docs/resources.md"] = reference([document(each) for each in DEFINITIONS])
    return made


def _install(root: Path, made: Mapping[str, str]) -> str:
    """What kustomization.yaml lists, in its order, for those who apply without kustomize."""
    listed = yaml.safe_load((root / MANIFESTS / "kustomization.yaml").read_text("utf-8"))
    parts = ["# Written by `make manifests` from what kustomization.yaml lists; change it there.\n"]
    for name in listed["resources"]:
        path = f"{MANIFESTS}/{name}"
        parts.append(f"---\n# {name}\n{made.get(path) or (root / path).read_text('utf-8')}")
    return "".join(parts)


def main(root: Path) -> None:
    """Writes those that differ."""
    for name, content in files(root).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != content:
            path.write_text(content, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
