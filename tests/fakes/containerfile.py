"""A Containerfile performed in plain directories: no image registry, no container engine.

Enough of the language for ours: FROM, RUN, COPY, ENV, ARG. Each stage is an overlay on one minimal
Debian root (mmdebstrap), and each RUN a shell in a chroot of it, with the host's network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SUITE = "bookworm"
STEP_TIMEOUT_S = 1500.0
"""A step downloads; on a busy machine that takes its time."""
LEFT_BEHIND = ("__pycache__", ".mypy_cache", ".ruff_cache")
HOST_FILES = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""How this machine reaches the package registries; lent to a root before each RUN, since packages
write their own over them, and the first two taken away again after the last step."""


class StepFailed(Exception):
    """A step that did not do; with what it printed last."""


@dataclass(slots=True)
class Stage:
    """One FROM: where its root is, and the environment its steps have."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": os.defpath + ":/usr/sbin:/sbin"})


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, rest) of every line; comments are left out, continued lines joined."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            instruction, _, rest = line.strip().partition(" ")
            yield instruction.upper(), rest.strip()


@contextmanager
def built(containerfile: Path, context: Path, work: Path) -> Iterator[Stage]:
    """The last stage, for as long as the block runs.

    Args:
        context: what COPY copies from.
        work: a directory for roots; on a file system that can hold an overlay.

    Raises:
        StepFailed: names the step.
    """
    base = work / "base"
    _step(["mmdebstrap", "--quiet", "--variant=minbase", SUITE, str(base)])
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    try:
        for instruction, rest in instructions(containerfile.read_text()):
            if instruction == "FROM":
                name = rest.split()[-1] if " AS " in rest.upper() else str(len(stages))
                current = stages[name] = Stage(_overlay(base, work / f"stage-{name}"))
                continue
            if current is None:
                continue  # ARG BASE: any Debian of the suite is the base here.
            _perform(instruction, rest, current, stages, context)
        if current is None:
            raise StepFailed(f"{containerfile} has no FROM")
        for path in HOST_FILES[:2]:
            (current.root / path.lstrip("/")).unlink(missing_ok=True)
        yield current
    finally:
        for stage in stages.values():
            subprocess.run(["umount", "--lazy", str(stage.root)], check=False)


def _overlay(base: Path, directory: Path) -> Path:
    for name in ("upper", "work", "root"):
        (directory / name).mkdir(parents=True)
    options = f"lowerdir={base},upperdir={directory}/upper,workdir={directory}/work"
    _step(["mount", "-t", "overlay", "overlay", "-o", options, str(directory / "root")])
    return directory / "root"


def _lend_host_files(root: Path) -> None:
    for path in HOST_FILES:
        target = root / path.lstrip("/")
        if Path(path).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy(path, target)


def _perform(
    instruction: str, rest: str, stage: Stage, stages: Mapping[str, Stage], context: Path
) -> None:
    match instruction:
        case "RUN":
            _lend_host_files(stage.root)
            mounted = 'mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"'
            env = stage.env | {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
            env |= {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}
            _step(["unshare", "--mount", "sh", "-c", mounted, str(stage.root), rest], env=env)
        case "COPY" if rest.startswith("--from="):
            origin, source, target = rest.split()
            root = stages[origin.removeprefix("--from=")].root
            place = stage.root / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            _step(["cp", "--archive", str(root / source.lstrip("/")), str(place)])
        case "COPY":
            *sources, target = rest.split()
            place = stage.root / target.lstrip("/")
            for source in sources:
                _copy(context / source, place / source if target.endswith("/") else place)
        case "ENV":
            name, _, value = rest.partition("=")
            stage.env[name] = value
        case "CMD" | "ARG":
            pass
        case other:
            raise StepFailed(f"{other} is not known here; teach tests/fakes/containerfile.py")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    else:
        shutil.copy(source, target)


def _step(argv: list[str], *, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise StepFailed(f"{' '.join(argv)[-200:]}:\n{done.stdout[-2000:]}")
