"""A real containerd on a lab's node, driven by ``ctr run --cni``.

containerd itself does no networking here: ``ctr`` makes the task, calls libcni's ADD for its
network namespace (/proc/<pid>/ns/net), starts it, and calls DEL when it has ended, which is after
the kernel has removed the namespace. So every DEL comes without one. A ctr that runs detached, or
is killed, never calls DEL at all.

Raised on any refusal: ``LabFailure``, with the runtime's own words.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lab import busybox_image, namespaces, processes
from lab.enclosure import Enclosure, Place, require_programs
from lab.plan import LabFailure
from lab.processes import Process
from lab.waiting import wait_until

NEEDED_PROGRAMS = {"containerd": "containerd", "ctr": "containerd", "runc": "runc"}

START_DEADLINE_S = 20.0
RUN_DEADLINE_S = 30.0

SNAPSHOTTER = "native"
"""Copies instead of stacking: works on every file system, and the image is small."""

# Of CRI's plugin nothing is needed, and it would watch /etc/cni/net.d; restrict_oom_score_adj,
# which a machine without CAP_SYS_RESOURCE needs, is a setting of it.
_CONFIG = """version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = {socket}
"""


class Containerd:
    """One node's containerd. ``start`` it first; ``close`` it whatever happened."""

    def __init__(self, place: Place) -> None:
        self.enclosure = Enclosure(place)
        self._socket = place.root / "containerd.sock"
        self._foreground: dict[str, Process] = {}
        self._execs = 0

    def start(self) -> None:
        """Starts containerd and loads the image; returns when containers can be run."""
        require_programs(NEEDED_PROGRAMS)
        place = self.enclosure.place
        place.root.mkdir(mode=0o700, parents=True)
        config = place.root / "config.toml"
        # A JSON string is a TOML basic string.
        paths = {"root": "root", "state": "state", "socket": "containerd.sock"}
        config.write_text(
            _CONFIG.format(**{k: json.dumps(str(place.root / v)) for k, v in paths.items()})
        )
        self.enclosure.open("containerd", ["containerd", "--config", str(config)])
        wait_until(self._silence, what="containerd", deadline_s=START_DEADLINE_S)
        image = place.root / "image.tar"
        busybox_image.build(image)
        self.ctr("images", "import", "--snapshotter", SNAPSHOTTER, str(image))

    def _silence(self) -> list[str]:
        self.enclosure.give_up_if_dead()
        try:
            self.ctr("version")
        except namespaces.CommandFailed as error:
            return [str(error)]
        return []

    def ctr(self, *arguments: str) -> str:
        """Runs ctr to its end; what it printed."""
        return self.enclosure.run(self._ctr(arguments))

    def _ctr(self, arguments: Sequence[str]) -> list[str]:
        name = self.enclosure.place.name
        return ["ctr", "--address", str(self._socket), "--namespace", name, *arguments]

    def run(self, container: str, argv: Sequence[str]) -> dict[str, Any]:
        """Runs a container in the background, with ctr waiting for its end.

        Returns:
            The CNI result of its ADD.

        Raises:
            LabFailure: ctr refused, an ADD that failed included; with ctr's last words.
        """
        arguments = ("run", "--cni", "--rm", "--snapshotter", SNAPSHOTTER)
        process = self.enclosure.start(
            f"ctr-{container}",
            self._ctr([*arguments, busybox_image.REFERENCE, container, *argv]),
        )
        self._foreground[container] = process

        def missing() -> list[str]:
            if not processes.is_alive(process):
                raise LabFailure(f"ctr run {container}: {self.words_of(container)}")
            state = self.tasks().get(container, (0, "absent"))[1]
            return [] if state == "RUNNING" else [f"{container} is {state}"]

        wait_until(missing, what=f"ctr run {container}", deadline_s=RUN_DEADLINE_S)
        return self.enclosure.cni_results()[self.cni_id(container)]

    def run_to_end(self, container: str, argv: Sequence[str]) -> str:
        """Runs a container to its end, DEL included; what it printed."""
        return self.ctr(
            *("run", "--cni", "--rm", "--snapshotter", SNAPSHOTTER),
            *(busybox_image.REFERENCE, container, *argv),
        )

    def run_detached(self, container: str, argv: Sequence[str]) -> dict[str, Any]:
        """Runs a container that ctr leaves behind, and for which it will never call DEL."""
        self.ctr(
            *("run", "--cni", "--detach", "--snapshotter", SNAPSHOTTER),
            *(busybox_image.REFERENCE, container, *argv),
        )
        return self.enclosure.cni_results()[self.cni_id(container)]

    def cni_id(self, container: str) -> str:
        """The container id plugins are told: ctr puts containerd's namespace before it."""
        return f"{self.enclosure.place.name}-{container}"

    def words_of(self, container: str) -> str:
        """The last words of the ctr that runs a container, or of the container."""
        return processes.log_tail(self.enclosure.place.log(f"ctr-{container}"))

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Container -> (pid of its first process, state as ctr prints it)."""
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows if len(row) == 3}

    def exec(self, container: str, argv: Sequence[str]) -> str:
        """Runs a program in a running container; what it printed."""
        self._execs += 1
        return self.ctr("tasks", "exec", "--exec-id", f"exec{self._execs}", container, *argv)

    def kill(self, container: str) -> None:
        """SIGKILL to a container; returns when its ctr has ended, which is after its DEL.

        Raises:
            LabFailure: ctr does not end.
        """
        self.ctr("tasks", "kill", "--signal", "SIGKILL", container)
        self._wait_end(container)

    def _wait_end(self, container: str) -> None:
        process = self._foreground.pop(container)
        wait_until(
            lambda: [f"ctr of {container} runs"] if processes.is_alive(process) else [],
            what=f"end of {container}",
            deadline_s=RUN_DEADLINE_S,
        )
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)

    def kill_client(self, container: str) -> None:
        """SIGKILL to the ctr that waits for a container: nobody will call its DEL."""
        # Our own child, which nobody but us reaps: the pid is still its.
        os.kill(self._foreground[container].pid, signal.SIGKILL)
        self._wait_end(container)

    def remove(self, container: str) -> None:
        """Ends and removes a container that ctr left behind; CNI is not called."""
        self.ctr("tasks", "rm", "--force", container)
        self.ctr("containers", "rm", container)

    def close(self) -> None:
        """Ends containers (with their DEL), containerd and shims; removes all their traces."""
        for container in list(self._foreground):
            try:
                self.kill(container)
            except LabFailure:
                continue  # it has ended by itself, or containerd has: the rest is done by force
        self.enclosure.close()
