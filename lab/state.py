"""What a lab remembers of itself, so that another command, or the next one, can end it.

The state file is written before the first namespace is made and after every process started. A lab
killed at any point is then cleaned up by ``lab down`` or by the next ``lab up`` of that name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lab import processes
from lab.plan import LabFailure, LabPaths, Shape
from lab.processes import Process

STATE_VERSION = 1
RUN_ROOT = Path("/run/slash32-lab")
PROGRAM_ROOT = Path("/var/lib/slash32-lab")
"""Used for executables only where RUN_ROOT is mounted noexec."""


class LabBusy(LabFailure):
    """A lab of that name is there, or is being built or taken down, by somebody else."""


@dataclass(frozen=True, slots=True)
class LabState:
    """What lab.json holds.

    ``is_up`` becomes true when the build is done. ``owner`` is the process that builds, or, for a
    demo, that the lab lives for. ``added`` are the pods that ADD was begun for; it is written
    before the executable runs, for a DEL too many does no harm.
    """

    name: str
    shape: Shape
    owner: Process
    namespaces: tuple[str, ...]
    programs: str
    made_netns_dir: bool
    is_up: bool = False
    processes: tuple[Process, ...] = ()
    added: tuple[str, ...] = field(default=())

    def with_process(self, process: Process) -> LabState:
        """With a process that was started; it takes the place of a dead one of its name."""
        others = tuple(known for known in self.processes if known.name != process.name)
        return replace(self, processes=(*others, process))


def this_process() -> Process:
    """The running command, as an owner."""
    ticks = processes.start_ticks(os.getpid())
    return Process("slash32 lab", os.getpid(), ticks or 0)


def save(paths: LabPaths, state: LabState) -> None:
    """Writes the state file atomically: a reader sees the old one or the new one, whole."""
    document = {"version": STATE_VERSION, **asdict(state)}
    draft = paths.state_file.with_suffix(".tmp")
    draft.write_text(json.dumps(document, indent=1) + "\n")
    draft.replace(paths.state_file)


def load(root: Path) -> LabState | None:
    """The state in a lab's directory; None when there is none yet.

    Raises:
        LabFailure: the file is not a state file of ours.
    """
    path = root / "lab.json"
    try:
        document = json.loads(path.read_text())
        if document.pop("version") != STATE_VERSION:
            raise ValueError("another version")
        return LabState(
            name=document.pop("name"),
            shape=Shape(**document.pop("shape")),
            owner=Process(**document.pop("owner")),
            namespaces=tuple(document.pop("namespaces")),
            processes=tuple(Process(**p) for p in document.pop("processes")),
            added=tuple(document.pop("added")),
            **document,
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabFailure(f"{path}: not a lab's state ({error}); remove {root} by hand") from None


@contextmanager
def claiming(run_root: Path) -> Iterator[None]:
    """Holds the one lock under which labs are claimed, so that two commands cannot both win.

    The lock is on the directory itself: a lock file would be one more thing to leave behind.
    """
    while True:
        run_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(run_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # the last lab of all was removed between the two lines
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_still(run_root, descriptor):
                continue  # removed while we waited: the lock is on a directory nobody can find
            yield
            return
        finally:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def existing(run_root: Path) -> list[str]:
    """The names of the labs that have a directory."""
    with suppress(FileNotFoundError):
        return sorted(entry.name for entry in run_root.iterdir() if entry.is_dir())
    return []


def program_dir(name: str, *, run_root: Path, program_root: Path) -> Path:
    """Where a lab's executables may lie: beside its state unless that is mounted noexec."""
    if os.statvfs(run_root).f_flag & os.ST_NOEXEC:
        return program_root / name
    return run_root / name


def is_running(state: LabState) -> bool:
    """Whether anybody would miss the lab.

    One that is up lives as long as a process of it. One that is not belongs to its owner: when
    that is gone, the processes it left behind are nobody's.
    """
    if state.is_up:
        return any(processes.is_alive(p) for p in state.processes)
    return processes.is_alive(state.owner)


def describe_owner(state: LabState) -> str:
    """Why a lab of this name cannot be built now."""
    shape = state.shape
    size = f"nodes: {shape.nodes}, routers: {shape.tors}, pods on each node: {shape.pods}"
    if state.is_up:
        return (
            f"lab {state.name!r} is up ({size}); use it, end it with "
            f"'slash32 lab down --name {state.name}', or choose another --name"
        )
    return (
        f"lab {state.name!r} is being built or taken down by process {state.owner.pid}; "
        f"wait for it or choose another --name"
    )


def remove_files(root: Path, *, run_root: Path, program_root: Path) -> None:
    """Removes a lab's directories.

    Raises:
        LabFailure: ``root`` is not directly below ``run_root``, so it is no lab's directory.
    """
    if root.parent != run_root or not root.name:
        raise LabFailure(f"{root} is no lab's directory: not removed")
    for directory in (program_root / root.name, root):
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)


def remove_empty_roots(*, run_root: Path, program_root: Path) -> None:
    """Removes the directories above the labs once no lab is left.

    Under the lock, or a lab that is just being claimed would lose the directory above it.
    """
    with claiming(run_root):
        for directory in (program_root, run_root):
            with suppress(OSError):  # other labs are there, or it never was
                directory.rmdir()
