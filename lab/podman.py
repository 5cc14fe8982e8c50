"""A real podman on a lab's node, with its CNI backend.

podman has no daemon: every command works on files, and a container's conmon calls podman again when
the container has ended. So the place needs a first process of its own, which only holds the mounts.
podman makes the network namespace itself (a mount below /run/netns, private to the place), calls
ADD before the container is started and DEL when it has ended, by the namespace's path.

Raised on any refusal: ``LabFailure``, with podman's own words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lab import busybox_image
from lab.enclosure import CNI_BIN_DIRS, CNI_CONF_DIR, Enclosure, Place, require_programs
from lab.plan import LabFailure
from lab.waiting import wait_until

NEEDED_PROGRAMS = {"podman": "podman", "conmon": "conmon", "runc": "runc"}

END_DEADLINE_S = 20.0

_NO_MORE_FILES = 1024
"""podman asks for 1048576 open files, which a machine without CAP_SYS_RESOURCE refuses."""

# lock_type: the locks podman keeps in /dev/shm by default are one table for the whole machine.
_CONFIG = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={files}:{files}"]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = {bin_dirs}
network_config_dir = {conf_dir}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
"""


class NoCniBackend(LabFailure):
    """This build of podman cannot use CNI; the sentence has its own words."""


class Podman:
    """One node's podman. ``start`` it first; ``close`` it whatever happened."""

    def __init__(self, place: Place, *, network: str) -> None:
        """``network`` is the name of the CNI network its containers join."""
        self.enclosure = Enclosure(place)
        self._network = network
        self._config = place.root / "containers.conf"

    def start(self) -> None:
        """Makes the place and loads the image; returns when containers can be run.

        Raises:
            NoCniBackend: podman was built without it.
            LabFailure: a program is missing, or the network is not what podman sees.
        """
        require_programs(NEEDED_PROGRAMS)
        place = self.enclosure.place
        place.root.mkdir(mode=0o700, parents=True)
        self._config.write_text(
            _CONFIG.format(
                files=_NO_MORE_FILES,
                bin_dirs=json.dumps(CNI_BIN_DIRS),
                conf_dir=json.dumps(CNI_CONF_DIR),
            )
        )
        self.enclosure.open("holder", ["sleep", "infinity"])
        try:
            backend = self.podman("info", "--format", "{{.Host.NetworkBackend}}").strip()
        except LabFailure as error:
            if "backend" in str(error):
                raise NoCniBackend(f"this podman has no CNI backend: {error}") from None
            raise
        if backend != "cni":
            raise NoCniBackend(f"this podman uses {backend!r} although it was told to use CNI")
        image = place.root / "image.tar"
        busybox_image.build(image)
        self.podman("load", "--input", str(image))

    def podman(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        """Runs podman to its end; what it printed."""
        root = self.enclosure.place.root
        return self.enclosure.run(
            [
                *("env", f"CONTAINERS_CONF={self._config}"),
                *("podman", "--root", str(root / "storage"), "--runroot", "/run/containers"),
                *("--tmpdir", "/run/libpod", "--storage-driver", "vfs", *arguments),
            ],
            ok=ok,
        )

    def networks(self) -> dict[str, str]:
        """Network -> the plugin type podman shows for it."""
        text = self.podman("network", "ls", "--format", "{{.Name}} {{.Driver}}")
        rows = [line.split() for line in text.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def run(
        self,
        container: str,
        argv: Sequence[str],
        *,
        network: str | None = None,
        options: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Runs a container in the background.

        Args:
            container: its name.
            argv: its program.
            network: another than the usual one.
            options: more of ``podman run``.

        Returns:
            The CNI result of its ADD.

        Raises:
            LabFailure: podman refused, an ADD that failed included.
        """
        # NET_RAW: ping needs it, and podman's default set is without.
        identity = self.podman(
            *("run", "--detach", "--name", container),
            *("--network", network or self._network),
            *("--cgroup-parent", f"/{self.enclosure.place.name}", "--cap-add", "NET_RAW"),
            *(*options, busybox_image.REFERENCE, *argv),
        ).strip()
        return self.enclosure.cni_results()[identity]

    def inspect(self, container: str) -> dict[str, Any]:
        """What ``podman inspect`` says."""
        return dict(json.loads(self.podman("inspect", container))[0])

    def netns_of(self, container: str) -> str:
        """The path of a running container's network namespace, as plugins are told it."""
        return str(self.inspect(container)["NetworkSettings"]["SandboxKey"])

    def exec(self, container: str, argv: Sequence[str]) -> str:
        """Runs a program in a running container; what it printed."""
        return self.podman("exec", container, *argv)

    def remove(self, container: str) -> None:
        """Ends and removes a container; its DEL is done then."""
        self.podman("rm", "--force", "--time", "0", container)

    def kill(self, container: str) -> None:
        """SIGKILL to a container; returns when conmon's clean-up, DEL included, is done.

        Raises:
            LabFailure: it is not.
        """
        identity = str(self.inspect(container)["Id"])
        self.podman("kill", container)
        wait_until(
            lambda: [f"{container} has no DEL"] if identity in self.enclosure.cni_results() else [],
            what=f"end of {container}",
            deadline_s=END_DEADLINE_S,
        )

    def close(self) -> None:
        """Removes containers (with their DEL) and every trace of this podman."""
        try:
            self.podman("rm", "--all", "--force", "--time", "0")
        except LabFailure:
            pass  # what podman cannot remove is removed below, by force and without DEL
        finally:
            self.enclosure.close()
