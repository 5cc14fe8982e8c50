"""Captures everything on every link of every router, and knows whether it got everything.

tcpdump listens on the "any" device, so that one process sees all links of a router with direction
and interface. A capture that was not running yet, had not written its last packets, or dropped
some would show an absence that means nothing. So a marked ping between router and node opens the
capture and another ends it; both must be in the file, and the kernel must have dropped nothing.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from lab import namespaces, processes
from lab.capture import SNAP_BYTES, CaptureUnreadable, RouterCapture, read_pcap
from lab.plan import LabFailure, LabPaths, LabPlan, Machine
from lab.processes import Process
from lab.waiting import wait_until

BUFFER_KIB = 32 * 1024
MARKER_DEADLINE_S = 10.0
_DROPPED = re.compile(r"^(\d+) packets? dropped by (kernel|interface)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Recording:
    """A capture that is running."""

    plan: LabPlan
    paths: LabPaths
    processes: Mapping[str, Process]


def start(plan: LabPlan, paths: LabPaths, env: Mapping[str, str]) -> Recording:
    """Starts a capture on each router; returns when each has been seen to record.

    Raises:
        LabFailure: tcpdump is not installed, or a capture does not begin.
    """
    started: dict[str, Process] = {}
    tcpdump = shutil.which("tcpdump", path=env["PATH"]) or "tcpdump"
    for tor in plan.tors:
        file = paths.capture(tor.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        # --immediate-mode and -U: a packet is in the file when the next one arrives, not when a
        # buffer is full. -Z root: Debian's tcpdump would hand the file to a user of its own.
        started[tor.name] = processes.start(
            f"tcpdump-{tor.name}",
            [
                *(tcpdump, "-i", "any", "-n", "-U", "--immediate-mode", "-Z", "root"),
                *("-y", "LINUX_SLL2", "-s", str(SNAP_BYTES), "-B", str(BUFFER_KIB)),
                *("-w", str(file)),
            ],
            namespace=tor.namespace,
            env=env,
            log=paths.log(f"tcpdump-{tor.name}"),
        )
    recording = Recording(plan, paths, started)
    for tor in plan.tors:
        _mark(recording, tor)
    return recording


def _mark(recording: Recording, tor: Machine) -> None:
    """Sends marked pings from a router to its first neighbour until one is in the file."""
    paths, process = recording.paths, recording.processes[tor.name]
    nonce = secrets.token_bytes(16)
    target = str(recording.plan.links_of(tor)[0][1].ipv4)

    def missing() -> list[str]:
        if not processes.is_alive(process):
            words = processes.log_tail(paths.log(process.name))
            raise LabFailure(f"the capture on {tor.name} ended: {words}")
        namespaces.run(
            ["ping", "-n", "-c", "1", "-W", "1", "-p", nonce.hex(), target],
            namespace=tor.namespace,
            ok=(0, 1),
        )
        try:
            found = nonce in paths.capture(tor.name).read_bytes()
        except FileNotFoundError:
            found = False
        return [] if found else [f"{tor.name}'s own ping is not in the file"]

    wait_until(missing, what="capture", deadline_s=MARKER_DEADLINE_S)


def finish(recording: Recording) -> list[RouterCapture]:
    """Ends the captures and reads them.

    Raises:
        LabFailure: a capture may lack packets, so that nothing can be concluded.
    """
    for tor in recording.plan.tors:
        _mark(recording, tor)
    links = {tor.name: _far_ends(recording.plan, tor) for tor in recording.plan.tors}
    killed = processes.stop(recording.processes.values())
    if killed:
        raise CaptureUnreadable("tcpdump did not end by itself: its count of drops is unknown")
    found = []
    for tor in recording.plan.tors:
        _refuse_drops(tor, recording.paths.log(recording.processes[tor.name].name).read_text())
        frames = list(read_pcap(recording.paths.capture(tor.name).read_bytes()))
        found.append(RouterCapture(tor, links[tor.name], frames))
    return found


def _far_ends(plan: LabPlan, tor: Machine) -> dict[int, Machine]:
    indexes = {
        link["ifname"]: int(link["ifindex"])
        for link in namespaces.ip_json(tor.namespace, "link", "show")
    }
    return {indexes[near.ifname]: far.machine for near, far in plan.links_of(tor)}


def _refuse_drops(tor: Machine, log: str) -> None:
    counts = {found[2]: int(found[1]) for found in _DROPPED.finditer(log)}
    if "kernel" not in counts:
        raise CaptureUnreadable(f"tcpdump on {tor.name} does not say what it dropped: {log!r}")
    for where, count in counts.items():
        if count:
            raise CaptureUnreadable(
                f"capture on {tor.name} is inconclusive: {count} packets dropped by the {where}"
            )
