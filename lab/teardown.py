"""Takes a lab away: pods by CNI DEL as a runtime would, then processes, namespaces, files.

Every step is safe to repeat and goes on past what fails, for a lab may have been killed between any
two lines of its build. What is removed is named in the state file or lives in a namespace that is.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cni.podlink import GATEWAY_V4
from lab import interrupts, namespaces, processes, runtime, state
from lab.build import ADDS_AT_ONCE, Lab
from lab.plan import LabFailure, LabPaths, Machine, Pod
from lab.state import LabBusy, LabState
from lab.waiting import Progress, in_parallel
from routing.routes import PROTOCOL

DEL_DEADLINE_S = 15.0
"""Less than a runtime's patience: the namespaces go anyway, and somebody waits for the prompt."""
ROUNDS_MAX = 3
"""How often namespaces are searched for processes that were started while others were ended."""


def take_over(lab: Lab, *, run_root: Path) -> None:
    """Makes this process the lab's owner, so that no other command works on it meanwhile.

    Raises:
        LabBusy: another command that is still alive builds it or takes it down.
    """
    with state.claiming(run_root):
        found = state.load(lab.paths.root)
        if found is None:
            raise LabBusy(f"lab {lab.plan.name!r} has just been taken down by somebody else")
        me = state.this_process()
        if not found.is_up and found.owner != me and processes.is_alive(found.owner):
            raise LabBusy(state.describe_owner(found))
        state.save(lab.paths, replace(found, is_up=False, owner=me))


def delete_pods(lab: Lab) -> list[str]:
    """DEL for every pod that ADD was begun for; a sentence for each that failed."""
    wanted = [pod for pod in lab.plan.pods if pod.name in lab.record.added]
    if not wanted:
        return []
    lab.progress.say(f"deleting {len(wanted)} pods through the CNI executable")

    def delete(pod: Pod) -> str | None:
        try:
            node = lab.runtime_of(pod.node, deadline_s=DEL_DEADLINE_S)
            node.delete(runtime.sandbox_of(pod))
        except LabFailure as error:
            return f"{pod.name}: {error}"
        return None

    return [text for text in in_parallel(delete, wanted, at_once=ADDS_AT_ONCE) if text]


def pod_leftovers(node: Machine) -> list[str]:
    """What a node that has no pods any more still holds of one: links, and routes to an address."""
    links = [
        f"{node.name}: link {link['ifname']}"
        for link in namespaces.ip_json(node.namespace, "link", "show")
        if str(link.get("ifalias", "")).startswith("slash32|") or link["ifname"].startswith("s32")
    ]
    show = ("route", "show", "proto", str(PROTOCOL))
    routes = [
        f"{node.name}: route to {route['dst']}"
        for family in ("-4", "-6")
        for route in namespaces.ip_json(node.namespace, family, *show)
        if _is_pod_route(route)
    ]
    return links + routes


def _is_pod_route(route: dict[str, Any]) -> bool:
    """iproute2 prints a /32 or /128 without its length; the gateway's own route is the node's."""
    return "/" not in route["dst"] and route["dst"] not in ("default", str(GATEWAY_V4))


def agents_alive(lab: Lab) -> bool:
    """Whether every node has an agent that can answer a DEL."""
    agents = [p for p in lab.record.processes if p.name.startswith("agent-")]
    return len(agents) == len(lab.plan.nodes) and all(processes.is_alive(p) for p in agents)


def clear(root: Path, *, run_root: Path, program_root: Path) -> list[str]:
    """Ends everything a lab's state file names, then removes its namespaces and files.

    Works without a state file too: then there are only files, since it is written first.

    Returns:
        A sentence for each process of the state file that did not end when it was asked to.

    Raises:
        LabFailure: a process or a namespace does not go away; the files are kept, so that it can
            be tried again.
    """
    record = state.load(root)
    stubborn: list[str] = []
    if record is not None:
        stubborn = _end_processes(record)
        for name in record.namespaces:
            namespaces.delete(name)
        if record.made_netns_dir:
            _remove_netns_dir()
    state.remove_files(root, run_root=run_root, program_root=program_root)
    return stubborn


def _end_processes(record: LabState) -> list[str]:
    inodes = [i for name in record.namespaces if (i := namespaces.inode(name)) is not None]
    killed = processes.stop(record.processes)
    for _ in range(ROUNDS_MAX):
        processes.stop(processes.inside(inodes))
    late = processes.inside(inodes)
    if late:
        raise LabFailure(f"new processes keep appearing in lab {record.name!r}: {late[0].name}")
    return [f"{p.name} ignored SIGTERM for {processes.TERM_DEADLINE_S:g} s" for p in killed]


def _remove_netns_dir() -> None:
    """Undoes what the first ``ip netns add`` of this machine did, if nobody needs it now.

    The kernel refuses umount while somebody's namespace is mounted below, and rmdir while a name
    is left. Not by the umount program: that would leave /run/mount behind.
    """
    with suppress(OSError):
        if not any(namespaces.NETNS_DIR.iterdir()):
            ctypes.CDLL(None).umount(bytes(namespaces.NETNS_DIR))
            namespaces.NETNS_DIR.rmdir()


def down(
    lab: Lab, *, run_root: Path = state.RUN_ROOT, program_root: Path = state.PROGRAM_ROOT
) -> list[str]:
    """Takes a whole lab away.

    Returns:
        What went wrong on the way to an end that was reached all the same: a DEL that failed, a
        link or a route it left in a node, a process that had to be killed.

    Raises:
        LabFailure: something does not go away, or another command is at work on the lab.
    """
    take_over(lab, run_root=run_root)
    interrupts.shield()
    problems: list[str] = []
    if agents_alive(lab):
        problems = delete_pods(lab)
        for node in lab.plan.nodes:
            problems += pod_leftovers(node)
    elif lab.record.added:
        problems = ["an agent is not running: pods were removed without their DEL"]
    lab.progress.say("stopping processes, removing namespaces and files")
    problems += clear(lab.paths.root, run_root=run_root, program_root=program_root)
    state.remove_empty_roots(run_root=run_root, program_root=program_root)
    return problems


def sweep_demos(
    prefix: str,
    *,
    progress: Progress,
    run_root: Path = state.RUN_ROOT,
    program_root: Path = state.PROGRAM_ROOT,
) -> None:
    """Clears the labs named ``prefix``... whose builder died before it could clean up."""
    names = [*state.existing(run_root), *state.existing(program_root)]
    stale = sorted({name for name in names if name.startswith(prefix)})
    if not stale:
        return
    with state.claiming(run_root):
        for name in stale:
            record = state.load(run_root / name)
            if record is not None and (record.is_up or state.is_running(record)):
                continue
            progress.say(f"cleaning up what {name!r} left behind")
            clear(run_root / name, run_root=run_root, program_root=program_root)


def remains(paths: LabPaths, record: LabState) -> list[str]:
    """What of a lab that was taken down is still there; empty when nothing is."""
    found = [f"process {p.name} (pid {p.pid})" for p in record.processes if processes.is_alive(p)]
    found += [f"namespace {name}" for name in record.namespaces if namespaces.exists(name)]
    found += [f"directory {d}" for d in {paths.root, paths.programs} if d.exists()]
    marker = str(paths.root).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if marker in (entry / "cmdline").read_bytes():
                    found.append(f"process {entry.name} that names {paths.root}")
    return found
