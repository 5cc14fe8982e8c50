"""Ethernet frames built by hand, and a packet socket to send and see them in a namespace.

What a hostile pod can put on its wire: no kernel of its own checks these.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address

from cni.podlink import HOST_MAC
from tests.fakes.netns import Namespace, in_netns

Address = IPv4Address | IPv6Address

ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x3, 0x800, 0x806, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FRAGMENT, DESTINATION_OPTIONS = 44, 60
ARP_REQUEST, ARP_REPLY = 1, 2
BROADCAST = "ff:ff:ff:ff:ff:ff"
SYN, SYN_ACK, RST = 0x02, 0x12, 0x04
PACKET_OUTGOING = 4


def mac(text: str) -> bytes:
    """Six bytes of ``aa:bb:cc:dd:ee:ff``."""
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(payload: bytes, *, source: str, ethertype: int, destination: str = HOST_MAC) -> bytes:
    """A frame, by default to the host end."""
    return mac(destination) + mac(source) + struct.pack("!H", ethertype) + payload


def arp(operation: int, *, sender_mac: str, sender: str, target: str) -> bytes:
    """A broadcast ARP frame (RFC 826)."""
    body = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, operation)
    body += mac(sender_mac) + ip_address(sender).packed + bytes(6) + ip_address(target).packed
    return ethernet(body, source=sender_mac, ethertype=ETH_P_ARP, destination=BROADCAST)


def packet(
    protocol: int, payload: bytes, *, source: str, destination: str, hop_limit: int = 255
) -> bytes:
    """An IPv4 or IPv6 packet."""
    src, dst = ip_address(source), ip_address(destination)
    if src.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hop_limit)
        return head + src.packed + dst.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, hop_limit, protocol, 0)
    head += src.packed + dst.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def with_checksum(
    protocol: int, body: bytes, place: int, *, source: str, destination: str
) -> bytes:
    """``body`` with the checksum over it and its pseudo header at ``place``."""
    src, dst = ip_address(source), ip_address(destination)
    if src.version == 6:
        pseudo = src.packed + dst.packed + struct.pack("!II", len(body), protocol)
    else:
        pseudo = src.packed + dst.packed + struct.pack("!HH", protocol, len(body))
    value = checksum((b"" if protocol == ICMP else pseudo) + body)
    return body[:place] + struct.pack("!H", value) + body[place + 2 :]


def udp(payload: bytes, *, source: str, destination: str, ports: tuple[int, int]) -> bytes:
    """A packet with a UDP datagram."""
    body = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    body = with_checksum(UDP, body, 6, source=source, destination=destination)
    return packet(UDP, body, source=source, destination=destination)


def tcp_syn(*, source: str, destination: str, ports: tuple[int, int]) -> bytes:
    """The TCP part of a SYN, with 12 bytes of no-operation options."""
    body = struct.pack("!HHIIBBHHH", *ports, 1, 0, 8 << 4, SYN, 1000, 0, 0) + b"\1" * 12
    return with_checksum(TCP, body, 16, source=source, destination=destination)


def icmpv6(kind: int, body: bytes, *, source: str, destination: str) -> bytes:
    """The ICMPv6 part of a packet."""
    whole = struct.pack("!BBH", kind, 0, 0) + body
    return with_checksum(ICMPV6, whole, 2, source=source, destination=destination)


def router_advertisement(*, source: str, source_mac: str) -> bytes:
    """The ICMPv6 part of a router advertisement to all nodes (RFC 4861, section 4.2)."""
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\1\1" + mac(source_mac)
    return icmpv6(134, body, source=source, destination="ff02::1")


def redirect_v6(*, source: str, node: str, target: str, destination: str) -> bytes:
    """The ICMPv6 part of a redirect (RFC 4861, section 4.5)."""
    body = bytes(4) + ip_address(target).packed + ip_address(destination).packed
    return icmpv6(137, body, source=source, destination=node)


def redirect_v4(*, node: str, gateway: str, destination: str) -> bytes:
    """The ICMP part of a redirect (RFC 792) that quotes an echo reply from ``node``.

    Linux looks for a socket to tell when another packet is quoted; for this one it changes routes.
    """
    quoted = packet(ICMP, bytes((0, 0, 0, 0, 0, 1, 0, 1)), source=node, destination=destination)
    body = struct.pack("!BBH", 5, 1, 0) + ip_address(gateway).packed + quoted
    return with_checksum(ICMP, body, 2, source=node, destination=destination)


def behind_destination_option(next_header: int, payload: bytes) -> bytes:
    """An IPv6 payload behind a destination options header of padding."""
    return bytes((next_header, 0, 1, 4, 0, 0, 0, 0)) + payload


def fragments(next_header: int, payload: bytes, *, first_bytes: int) -> list[bytes]:
    """An IPv6 payload in two fragments, or in one that claims to be all (RFC 6946)."""
    cuts = [(0, payload[:first_bytes]), (first_bytes, payload[first_bytes:])]
    pieces = [(offset, piece) for offset, piece in cuts if piece]
    last = len(pieces) - 1
    return [
        struct.pack("!BBHI", next_header, 0, offset | (index < last), 0x5332) + piece
        for index, (offset, piece) in enumerate(pieces)
    ]


class Wire:
    """A packet socket on one interface of a namespace."""

    def __init__(self, namespace: Namespace, ifname: str | None) -> None:
        def open_socket() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            if ifname is not None:
                made.bind((ifname, ETH_P_ALL))
            return made

        self.socket = in_netns(namespace, open_socket)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE

    def send(self, *frames: bytes) -> None:
        """Puts frames on the wire as they are."""
        for frame in frames:
            self.socket.send(frame)

    def received(
        self, until: Callable[[bytes], bool], *, deadline_s: float = 5.0, outgoing: bool = False
    ) -> list[bytes]:
        """Every frame up to the first for which ``until`` is true, that one included.

        Raises:
            TimeoutError: it did not come.
        """
        ends_at_s = time.monotonic() + deadline_s
        seen: list[bytes] = []
        while (left_s := ends_at_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                frame, place = self.socket.recvfrom(65536)
            except TimeoutError:
                break
            if place[2] == PACKET_OUTGOING and not outgoing:
                continue
            seen.append(frame)
            if until(frame):
                return seen
        raise TimeoutError(f"the frame did not come within {deadline_s} s, but {len(seen)} others")


@contextmanager
def wire(namespace: Namespace, ifname: str | None) -> Iterator[Wire]:
    """A packet socket for the length of a block; ``None`` sees every interface."""
    made = Wire(namespace, ifname)
    try:
        yield made
    finally:
        made.socket.close()
