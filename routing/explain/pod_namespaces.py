"""Finds the network namespace at the other end of a pod link, from the host alone.

The kernel numbers the namespace of a veth's other end (IFLA_LINK_NETNSID). Runtimes keep a name for
it below /run/netns; where they do not, a process that lives in it has it open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cni import hostend
from cni import netlink as nl
from cni.netlink import NetlinkError
from cni.netlink_socket import NetlinkSocket
from cni.netns import is_network_namespace

NAMED_DIRECTORIES = (Path("/run/netns"), Path("/var/run/netns"))
PROC = Path("/proc")


@contextmanager
def namespace_behind(socket: NetlinkSocket, peer_nsid: int | None) -> Iterator[int | None]:
    """A descriptor of the namespace with this number, or None when nobody here has it open."""
    fd = None if peer_nsid is None else _find(socket, peer_nsid)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _find(socket: NetlinkSocket, nsid: int) -> int | None:
    seen: set[tuple[int, int]] = set()
    for path in _candidates():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if key not in seen and is_network_namespace(fd):
                seen.add(key)
                answer = socket.get(nl.RTM_GETNSID, hostend.get_nsid(fd))
                if hostend.parse_nsid(answer) == nsid:
                    found, fd = fd, -1
                    return found
        except NetlinkError:
            continue
        finally:
            if fd >= 0:
                os.close(fd)
    return None


def _candidates() -> Iterator[Path]:
    for directory in NAMED_DIRECTORIES:
        try:
            yield from sorted(directory.iterdir())
        except OSError:
            continue
    try:
        processes = [each for each in PROC.iterdir() if each.name.isdigit()]
    except OSError:
        return
    for process in processes:
        yield process / "ns" / "net"
