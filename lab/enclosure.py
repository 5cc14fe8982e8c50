"""A place on a lab's node where a real container runtime can live without touching the machine's.

A runtime will not be argued out of some directories: ctr and podman read /etc/cni/net.d, Debian's
ctr looks for plugins in /usr/lib/cni where others look in /opt/cni/bin, libcni keeps results in
/var/lib/cni, shims, conmon and podman put sockets, locks and namespaces under /run. So a node's
runtime gets a mount namespace in which these are directories of the lab, besides the node's network
namespace and a cgroup of its own. The machine's own directories are never written, not even to make
a mount point: where one is missing, an overlay with its upper half in memory supplies it.

Everything inside is found again by the mount namespace or by the cgroup, whatever became of the
process that started it: shims and containers outlive their daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import namespaces, processes
from lab.plan import LabFailure, LabPaths, LabPlan
from lab.processes import Process
from lab.runtime import HOST_PATH
from lab.waiting import wait_until

CNI_CONF_DIR = "/etc/cni/net.d"
CNI_BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
"""Upstream's directory for plugins and Debian's; each build of a runtime knows one of them."""

CNI_CACHE_DIR = "/var/lib/cni"
CGROUP_ROOT = Path("/sys/fs/cgroup")

MOUNT_DEADLINE_S = 10.0
ROUNDS_MAX = 5
"""How often what is inside is looked for and ended: a dying runtime may still start something."""

ENVIRONMENT = {"PATH": HOST_PATH, "HOME": "/root", "LANG": "C.UTF-8"}

# Arguments: a file to write when all is mounted, then lists that end with --: directories to keep;
# directories whose changes stay inside; directories that must be there; pairs of (where, what to
# show there). Then the program. What is kept is held by a descriptor each, opened before anything
# hides it. umount comes first: a copy of another's namespace file keeps that namespace alive after
# 'ip netns delete'. mount -n: /run/mount/utab is the machine's.
_MOUNT = r"""
ready=$1
shift
while mountpoint -q /run/netns; do umount -n -l -R /run/netns; done
kept=
next=3
while [ "$1" != -- ]; do
    eval "exec $next< \"\$1\"; kept$next=\$1"
    kept="$kept $next"
    next=$((next + 1))
    shift
done
shift
mount -n -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns
mount -n -t tmpfs -o mode=1777 tmpfs /dev/shm
layers=0
cover() {
    [ "$1" != / ] || { echo "no overlay over the whole machine" >&2; exit 1; }
    layers=$((layers + 1))
    layer=/run/layer$layers
    mkdir -p "$layer/upper" "$layer/work"
    mount -n -t overlay -o "lowerdir=$1,upperdir=$layer/upper,workdir=$layer/work" overlay "$1"
}
while [ "$1" != -- ]; do
    cover "$1"
    shift
done
shift
while [ "$1" != -- ]; do
    if [ ! -d "$1" ]; then
        above=$(dirname "$1")
        while [ ! -d "$above" ]; do above=$(dirname "$above"); done
        cover "$above"
        mkdir -p "$1"
    fi
    shift
done
shift
for fd in $kept; do
    eval "where=\$kept$fd"
    mkdir -p "$where"
    mount -n --no-canonicalize --bind "/proc/self/fd/$fd" "$where"
    eval "exec $fd<&-"
done
while [ "$1" != -- ]; do
    mount -n --bind "$2" "$1"
    shift 2
done
shift
: > "$ready"
exec "$@"
"""

KEPT_MAX = 7
"""One descriptor each, and a POSIX shell has 3 to 9."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a runtime is to live.

    Attributes:
        name: names its cgroup and its containers' namespace; unique on the machine.
        namespace: the node's network namespace.
        root: a directory of its own, made by ``Enclosure`` and removed at the end.
        kept: what must stay as it is below /run and other hidden directories, at most KEPT_MAX:
            the lab's directories, and ``root`` or one above it.
        shown: directory of the machine -> what is seen there instead.
        private: directories of the machine whose changes stay inside and go with it.
    """

    name: str
    namespace: str
    root: Path
    kept: tuple[Path, ...]
    shown: Mapping[str, Path] = field(default_factory=dict)
    private: tuple[str, ...] = ()

    @property
    def cni_cache(self) -> Path:
        return self.root / "cni-cache"

    def log(self, program: str) -> Path:
        return self.root / "log" / f"{program}.log"


def shown_for_cni(*, bin_dir: Path, conf_dir: Path) -> dict[str, Path]:
    """``Place.shown`` for a runtime that is to use these plugins and configurations."""
    return {CNI_CONF_DIR: conf_dir, **dict.fromkeys(CNI_BIN_DIRS, bin_dir)}


def place_on(plan: LabPlan, paths: LabPaths, *, node: str, runtime: str) -> Place:
    """The place of a runtime on a lab's node, over what ``cni install`` put there.

    It lies with the programs, for a container's root file system must not be mounted noexec.
    """
    return Place(
        name=f"s32-{plan.name}-{node}-{runtime}",
        namespace=plan.namespace_of(node),
        root=paths.programs / node / runtime,
        kept=tuple(dict.fromkeys((paths.root, paths.programs))),
        shown=shown_for_cni(bin_dir=paths.cni_bin(node), conf_dir=paths.cni_conf(node)),
    )


def require_programs(needed: dict[str, str]) -> None:
    """Whether the programs a runtime consists of are there.

    Args:
        needed: program -> the Debian package that has it.

    Raises:
        LabFailure: names what is missing and the packages.
    """
    missing = [p for p in needed if shutil.which(p, path=HOST_PATH) is None]
    if missing:
        packages = " ".join(sorted({needed[p] for p in missing}))
        raise LabFailure(f"missing: {', '.join(missing)}; on Debian: apt-get install {packages}")


class Enclosure:
    """One place in use. ``open`` it first; ``close`` it whatever happened."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._first: Process | None = None
        self._mounts: int | None = None

    def open(self, name: str, argv: Sequence[str]) -> Process:
        """Starts the first program inside, whose life is that of the place.

        Raises:
            LabFailure: a mount failed, or the program ended; with its last words.
        """
        place = self.place
        if len(place.kept) > KEPT_MAX:
            raise LabFailure(f"{place.name}: {len(place.kept)} kept directories, over {KEPT_MAX}")
        place.cni_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready = place.root / "mounted"
        ready.unlink(missing_ok=True)
        shown = {CNI_CACHE_DIR: place.cni_cache, **place.shown}
        script = ["sh", "-euc", _MOUNT, "sh", str(ready), *(str(k) for k in place.kept), "--"]
        script += [*place.private, "--", *shown, "--"]
        for where, what in shown.items():
            script += [where, str(what)]
        script += ["--", *argv]
        first = processes.start(
            name,
            ["unshare", "--mount", "--propagation", "private", "--", *script],
            namespace=place.namespace,
            env=ENVIRONMENT,
            log=place.log(name),
        )
        self._first = first

        def missing() -> list[str]:
            if ready.exists():
                return []
            self.give_up_if_dead()
            return [f"{name} has not mounted its directories"]

        wait_until(missing, what=name, deadline_s=MOUNT_DEADLINE_S)
        self._mounts = _mount_namespace(first.pid)
        return first

    def give_up_if_dead(self) -> Process:
        """The first program.

        Raises:
            LabFailure: it has ended, with its last words, or was never started.
        """
        if self._first is None:
            raise LabFailure(f"nothing was started in {self.place.name}")
        if not processes.is_alive(self._first):
            words = processes.log_tail(self.place.log(self._first.name))
            raise LabFailure(f"{self._first.name} of {self.place.name} has ended: {words}")
        return self._first

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` inside, from anywhere.

        Raises:
            LabFailure: nothing is inside any more.
        """
        first = self.give_up_if_dead()
        return ["nsenter", f"--target={first.pid}", "--mount", "--net", "--", *argv]

    def run(self, argv: Sequence[str], *, ok: tuple[int, ...] = (0,)) -> str:
        """Runs a program inside to its end; what it printed.

        Raises:
            CommandFailed: see ``namespaces.run``.
        """
        return namespaces.run(self.command(argv), env=ENVIRONMENT, ok=ok)

    def start(self, name: str, argv: Sequence[str]) -> Process:
        """Starts a program inside, with its output in ``place.log(name)``."""
        return processes.start(
            name,
            self.command(argv),
            namespace=self.place.namespace,
            env=ENVIRONMENT,
            log=self.place.log(name),
        )

    def cni_results(self) -> dict[str, dict[str, Any]]:
        """What libcni keeps: container id as it was told to plugins -> the ADD result.

        An entry appears when an ADD has succeeded and goes with a DEL that has.
        """
        found: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for path in sorted((self.place.cni_cache / "results").iterdir()):
                # It is written in place: what cannot be read yet is not there yet.
                with suppress(ValueError, FileNotFoundError):
                    entry = json.loads(path.read_text())
                    found[str(entry["containerId"])] = dict(entry["result"])
        return found

    def inside(self) -> list[Process]:
        """Every process in the place's mount namespace or cgroup."""
        pids = set(_cgroup_members(self.place.name))
        if self._mounts is not None:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and _mount_namespace(int(entry.name)) == self._mounts:
                    pids.add(int(entry.name))
        elif self._first is not None:
            pids.add(self._first.pid)
        return [
            Process(f"process of {self.place.name}", pid, ticks)
            for pid in sorted(pids)
            if (ticks := processes.start_ticks(pid)) is not None
        ]

    def close(self) -> None:
        """Ends everything inside and removes cgroup and files; with the last process go the mounts.

        Raises:
            LabFailure: something cannot be ended or removed.
        """
        for _ in range(ROUNDS_MAX):
            _kill_members(self.place.name)
            processes.stop(self.inside())
            if not any(processes.is_alive(p) for p in self.inside()):
                break
        else:
            raise LabFailure(f"new processes keep appearing in {self.place.name}")
        wait_until(
            lambda: _remove_cgroups(self.place.name),
            what=f"removing the cgroup {self.place.name}",
            deadline_s=MOUNT_DEADLINE_S,
        )
        with suppress(FileNotFoundError):
            shutil.rmtree(self.place.root)
        self._first = self._mounts = None


def _mount_namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _cgroup_dirs(name: str) -> list[Path]:
    """The cgroup in every hierarchy: one under version 2, one per controller under version 1."""
    candidates = [CGROUP_ROOT / name, *(d / name for d in CGROUP_ROOT.iterdir() if d.is_dir())]
    return [directory for directory in candidates if directory.is_dir()]


def _cgroup_members(name: str) -> list[int]:
    members: list[int] = []
    for top in _cgroup_dirs(name):
        for file in (top / "cgroup.procs", *top.rglob("*/cgroup.procs")):
            with suppress(OSError):  # it went while we looked
                members += [int(line) for line in file.read_text().split()]
    return members


def _kill_members(name: str) -> None:
    """SIGKILL to what is in the cgroup: a container's first process does not obey SIGTERM."""
    for pid in _cgroup_members(name):
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # The descriptor names one process now; only then may its cgroup be checked.
                if pid in _cgroup_members(name):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _remove_cgroups(name: str) -> list[str]:
    """Removes the cgroup bottom up; what is still there, a sentence each.

    A cgroup is busy for a moment after its last process has been reaped.
    """
    for top in _cgroup_dirs(name):
        for directory, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)
    return [f"{directory} is busy" for directory in _cgroup_dirs(name)]
