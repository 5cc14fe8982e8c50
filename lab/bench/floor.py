"""The kernel's own price: the agent's netlink messages and sysctls, with nothing around them.

Run inside a node's namespace, one command a line on stdin:
    add NAME NETNS   wires one pod; answers "WALL_US CPU_US" of the system calls alone
    del NAME         unwires it; "WALL_US CPU_US ACK_US": until the kernel has announced the link
                     gone, and until it has acknowledged that
The messages are those of cni/hostend.py and cni/podend.py, packed before the clock starts, so a
change to the wiring is a change to this floor. Alias and route protocol are not ours, though: an
agent in the same namespace would take a link and a route from another hand for news, and look at
all its tables again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address

from cni import hostend, podend
from cni import netlink as nl
from cni.attachment import Attachment
from cni.netlink import Request
from cni.netns import Sysctls, inside
from cni.podlink import ALIAS_TAG, PodLink
from cni.wiring import FIRST_IFINDEX, POD_IFINDEX
from routing.event_filter import RTPROT_KERNEL
from routing.routes import METRIC

NETWORK = "floor"
FIRST_ADDRESS = IPv4Address("10.250.0.1")
ANSWER_DEADLINE_S = 10.0
_IFREQ = struct.Struct("=16si20x")


class Clock:
    """Adds up what runs between ``go`` and ``halt``, in µs."""

    def __init__(self) -> None:
        self.wall_us = self.cpu_us = 0.0
        self._wall = self._cpu = 0

    def go(self) -> None:
        """Starts."""
        self._cpu = time.thread_time_ns()
        self._wall = time.perf_counter_ns()

    def halt(self) -> None:
        """Stops."""
        self.wall_us += (time.perf_counter_ns() - self._wall) / 1000
        self.cpu_us += (time.thread_time_ns() - self._cpu) / 1000


def packed(requests: Sequence[Request]) -> bytes:
    """The requests with their headers, each to be acknowledged."""
    parts = []
    for number, request in enumerate(requests):
        length = nl.HEADER.size + len(request.body)
        flags = nl.NLM_F_REQUEST | nl.NLM_F_ACK | request.flags
        parts.append(nl.HEADER.pack(length, request.kind, flags, number + 1, 0) + request.body)
        parts.append(b"\0" * (-length & 3))
    return b"".join(parts)


def send(sock: socket.socket, data: bytes, *, answers: int, clock: Clock) -> None:
    """One send and its acknowledgements.

    Raises:
        OSError: the kernel refused one of the messages.
    """
    replies = []
    clock.go()
    sock.send(data)
    while answers:
        reply = sock.recv(65536)
        replies.append(reply)
        # Short acknowledgements (NETLINK_CAP_ACK), 36 bytes each.
        answers -= len(reply) // 36
    clock.halt()
    for reply in replies:
        for kind, _flags, number, _port, body in nl.messages(reply):
            code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            if kind == nl.NLMSG_ERROR and code:
                raise OSError(code, f"message {number}: {os.strerror(code)}")


def netlink_socket(groups: int = 0) -> socket.socket:
    """A bare route socket in the calling thread's namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.setsockopt(nl.SOL_NETLINK, 10, 1)  # NETLINK_CAP_ACK
    sock.settimeout(None if not groups else ANSWER_DEADLINE_S)
    sock.bind((0, groups))
    return sock


def ifindex_of(sock: socket.socket, ifname: str) -> int:
    """The index of an interface in the socket's namespace."""
    answer = fcntl.ioctl(sock, nl.SIOCGIFINDEX, _IFREQ.pack(ifname.encode(), 0))
    index: int = _IFREQ.unpack(answer)[1]
    return index


class Floor:
    """Wires pods without an agent, in the namespace it is made in."""

    def __init__(self) -> None:
        self._host = netlink_socket()
        self._remover = netlink_socket()
        self._sysctls = Sysctls()
        self._given = 0

    def add(self, name: str, netns: str) -> Clock:
        """One pod, as the agent's wiring does it: host half, host route, pod half."""
        clock = Clock()
        self._given += 1
        address = FIRST_ADDRESS + self._given
        link = PodLink(Attachment(NETWORK, name, "eth0"), (address,), mtu_bytes=1500)
        clock.go()
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        with inside(fd):
            pod = netlink_socket()
        clock.halt()
        try:
            ifindex = FIRST_IFINDEX * 2 + self._given
            pair = hostend.new_pair(link, fd, ifindex=ifindex, pod_ifindex=POD_IFINDEX)
            send(self._host, packed([pair]), answers=1, clock=clock)
            self._host_half(link, ifindex, clock)
            requests = podend.pod_requests(link, POD_IFINDEX, has_ipv6=self._sysctls.has_ipv6)
            requests.append(podend.LOOPBACK_UP)
            send(pod, packed(requests), answers=len(requests), clock=clock)
            clock.go()
            self._host.send(
                packed([Request(nl.RTM_GETLINK, 0, hostend.get_link(link.host_ifname))])
            )
            self._host.recv(65536)
            clock.halt()
            self._host.recv(65536)  # the acknowledgement, which the agent does not ask for
        finally:
            clock.go()
            pod.close()
            os.close(fd)
            clock.halt()
        return clock

    def _host_half(self, link: PodLink, ifindex: int, clock: Clock) -> None:
        clock.go()
        for path, value in hostend.slow_sysctls(link).items():
            self._sysctls.write(path, str(value))
        clock.halt()
        requests = [
            *hostend.set_fast_sysctls(link, ifindex, alias=link.alias.replace(ALIAS_TAG, "nobody")),
            hostend.set_up(ifindex),
            *(host_route(address, ifindex) for address in link.addresses),
        ]
        send(self._host, packed(requests), answers=len(requests), clock=clock)

    def remove(self, name: str) -> tuple[Clock, float]:
        """Unwires it; the clock until the announcement, and µs until the acknowledgement."""
        ifname = Attachment(NETWORK, name, "eth0").host_ifname
        ifindex = ifindex_of(self._host, ifname)
        # A new one each time: nothing older is in it, and it cannot have overflowed.
        listener = netlink_socket(1 << (nl.RTNLGRP_LINK - 1))
        data = packed([hostend.delete_link(ifindex)])
        acknowledged = Clock()
        worker = threading.Thread(
            target=send, args=(self._remover, data), kwargs={"answers": 1, "clock": acknowledged}
        )
        announced = Clock()
        worker.start()
        announced.go()
        with listener:
            while not self._says_gone(listener.recv(65536), ifindex):
                pass
            announced.halt()
        worker.join(ANSWER_DEADLINE_S)
        # The waiting thread has no CPU to speak of; the work is the removing one's.
        announced.cpu_us = acknowledged.cpu_us
        return announced, acknowledged.wall_us

    @staticmethod
    def _says_gone(data: bytes, ifindex: int) -> bool:
        return any(
            kind == nl.RTM_DELLINK and nl.IFINFOMSG.unpack_from(body)[2] == ifindex
            for kind, _flags, _number, _port, body in nl.messages(data)
        )


def host_route(address: object, ifindex: int) -> Request:
    """The pod's /32 towards its host end, as the agent writes it but for whose it is."""
    body = nl.RTMSG.pack(
        *(socket.AF_INET, 32, 0, 0, nl.RT_TABLE_MAIN, RTPROT_KERNEL),
        *(nl.RT_SCOPE_LINK, nl.RTN_UNICAST, 0),
    )
    body += nl.attribute(nl.RTA_DST, IPv4Address(str(address)).packed)
    body += nl.attribute_u32(nl.RTA_OIF, ifindex) + nl.attribute_u32(nl.RTA_PRIORITY, METRIC)
    return Request(nl.RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def main() -> int:
    """The command loop."""
    floor = Floor()
    for line in sys.stdin:
        match line.split():
            case ["add", name, netns]:
                clock = floor.add(name, netns)
                print(f"{clock.wall_us:.1f} {clock.cpu_us:.1f}", flush=True)
            case ["del", name]:
                clock, acknowledged_us = floor.remove(name)
                figures = f"{clock.wall_us:.1f} {clock.cpu_us:.1f} {acknowledged_us:.1f}"
                print(figures, flush=True)
            case _:
                print(f"error: no such command: {line.strip()}", flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
