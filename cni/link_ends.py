"""Both ends of one pod link as the kernel has them, and what differs from what they should be.

What they should be is in hostend.py and podend.py, which do no I/O.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from socket import AF_INET, AF_INET6, AF_UNSPEC

from cni import hostend, podend
from cni import netlink as nl
from cni.hostend import HostEnd, Owned
from cni.netlink_socket import NetlinkSocket
from cni.netns import Sysctls
from cni.podlink import GATEWAY_V6, AliasError, PodLink, decode_alias
from cni.wiring_errors import LinkExists

GONE = frozenset({errno.ENODEV, errno.ENXIO})
"""What the kernel says of a link that is not there."""


class LinkEnds:
    """Reads and compares, in the namespace that ``socket`` and ``sysctls`` are in.

    Raises:
        OSError: from every method, when the kernel could not be read.
    """

    def __init__(self, socket: NetlinkSocket, sysctls: Sysctls) -> None:
        self._socket = socket
        self._sysctls = sysctls

    def host_end(self, ifname: str) -> HostEnd | None:
        """The host end; None when there is no such link."""
        found = read_link(self._socket, ifname)
        if found is None:
            return None
        path = hostend.proxy_delay_path(ifname)
        delay = self._sysctls.read(path)
        if delay is None:
            return found
        return replace(found, sysctls={**found.sysctls, path: int(delay)})

    def host_differences(self, link: PodLink, found: HostEnd) -> list[str]:
        """What differs from ``link`` in its host end, one sentence each."""
        has_gateway = False
        if link.ipv6 is not None:
            body = hostend.dump_addresses(AF_INET6, found.ifindex)
            there = podend.parse_addresses(self._socket.dump(nl.RTM_GETADDR, body))
            has_gateway = f"{GATEWAY_V6}/64" in there
        return list(hostend.host_differences(link, found, has_gateway_v6=has_gateway))

    def pod_differences(
        self, socket: NetlinkSocket, link: PodLink, host_end: HostEnd | None, netns_fd: int
    ) -> list[str]:
        """What differs from ``link`` inside the pod, whose namespace ``socket`` is in.

        Args:
            host_end: None when it is not to be compared.
        """
        found = read_link(socket, link.attachment.ifname)
        if found is None:
            return [f"{link.attachment.ifname} is missing in the pod's namespace"]
        body = hostend.dump_addresses(AF_UNSPEC, found.ifindex)
        addresses = podend.parse_addresses(socket.dump(nl.RTM_GETADDR, body))
        names = {found.ifindex: found.ifname}
        families = [AF_INET, AF_INET6] if self._sysctls.has_ipv6 else [AF_INET]
        routes = [
            podend.parse_route(body, names)
            for family in families
            for body in socket.dump_routes(podend.dump_main_table(family))
        ]
        # An index alone is not enough: every namespace counts its own from 1.
        is_peer = host_end is None or (host_end.peer_ifindex, host_end.peer_nsid) == (
            found.ifindex,
            hostend.parse_nsid(self._socket.get(nl.RTM_GETNSID, hostend.get_nsid(netns_fd))),
        )
        return list(
            podend.pod_differences(
                link, found=found, is_peer=is_peer, addresses=addresses, routes=routes
            )
        )


def read_link(socket: NetlinkSocket, ifname: str) -> HostEnd | None:
    """The link of that name where ``socket`` is; None when there is none."""
    body = socket.get(nl.RTM_GETLINK, hostend.get_link(ifname), absent=GONE)
    return hostend.parse_link(body) if body else None


def is_ours(found: HostEnd | Owned) -> bool:
    """By its alias, or half made. An alias with our tag that cannot be read is not enough."""
    try:
        return found.is_half_made or decode_alias(found.alias) is not None
    except AliasError:
        return False


def taken(found: HostEnd) -> LinkExists:
    """The error that says whose the link is."""
    is_of_ours = is_ours(found)
    whose = "of ours" if is_of_ours else "not ours"
    return LinkExists(
        f"link {found.ifname} (index {found.ifindex}) exists and is {whose}: alias {found.alias!r}",
        is_ours=is_of_ours,
    )
