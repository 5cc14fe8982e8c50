"""The messages of rtnetlink: their numbers, packing and parsing. No I/O.

Why not a library: measured, one call through pyroute2 costs 0.7 ms against 0.03 ms here, a link
dump at 1000 pods 375 ms against 12 (reference: cni-performance.md, section 9).
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_SETNEIGHTBL = 67
RTM_GETNSID = 90

RTNLGRP_LINK = 1
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11

IFF_UP = 0x1
IFF_RUNNING = 0x40
IFF_LOWER_UP = 0x10000

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 18, 20, 26, 27
IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 28, 29, 31, 32
IFLA_LINK_NETNSID = 37
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_INET_CONF = 1
IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE = 2, 8
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD = 0x2

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE = 1, 2, 6
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RT_TABLE_MAIN = 254
RTM_F_CLONED, RTM_F_FIB_MATCH = 0x200, 0x2000

NETNSA_NSID, NETNSA_FD = 1, 3

SIOCGIFNAME, SIOCGIFINDEX = 0x8910, 0x8933

IFINFOMSG = struct.Struct("=BxHiII")
"""family, type, index, flags, change mask."""
IFADDRMSG = struct.Struct("=BBBBi")
"""family, prefix length, flags, scope, index."""
RTMSG = struct.Struct("=BBBBBBBBI")
"""family, dst length, src length, tos, table, protocol, scope, type, flags."""
RTNEXTHOP = struct.Struct("=HBBi")
"""length, flags, weight - 1, index."""

HEADER = struct.Struct("=IHHII")
"""length, type, flags, sequence, port id."""
ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")

SOL_NETLINK = 270
_NLMSGERR_ATTR_MSG = 1


class NetlinkError(OSError):
    """The kernel refused a request; ``str`` is its reason, and its explanation if it gave one."""

    def __init__(self, code: int, explanation: str = "") -> None:
        reason = os.strerror(code)
        super().__init__(code, f"{reason} ({explanation})" if explanation else reason)

    def __str__(self) -> str:
        return str(self.strerror)


class MalformedMessage(ValueError):
    """Bytes that are not attributes or messages in the kernel's form."""


class Request(NamedTuple):
    """One message without its header. ``flags`` needs neither REQUEST nor ACK."""

    kind: int
    flags: int
    body: bytes


class Event(NamedTuple):
    """One multicast message. ``port_id`` is the socket that caused it, 0 the kernel itself."""

    kind: int
    port_id: int
    body: bytes


# -- packing and parsing ---------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(payload)
    return ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length & 3)


def attribute_u32(kind: int, value: int) -> bytes:
    """An attribute that holds one unsigned 32-bit number."""
    return ATTRIBUTE.pack(8, kind) + _U32.pack(value)


def attribute_text(kind: int, text: str) -> bytes:
    """An attribute that holds a NUL-terminated string."""
    return attribute(kind, text.encode() + b"\0")


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind, b"".join(parts))


def attributes(
    data: bytes, offset: int = 0, *, wanted: Collection[int] | None = None
) -> dict[int, bytes]:
    """The attributes of ``data`` from ``offset`` on, by type, without flags.

    Args:
        wanted: stop as soon as all of these were seen. Links carry forty attributes, of which a
            reader often needs two of the first five.

    Raises:
        MalformedMessage: a length is out of bounds.
    """
    found: dict[int, bytes] = {}
    missing = None if wanted is None else set(wanted)
    size = len(data)
    while offset + 4 <= size:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > size:
            raise MalformedMessage(f"attribute of {length} bytes at {offset} of {size}")
        kind &= _TYPE_MASK
        found[kind] = data[offset + 4 : offset + length]
        if missing is not None:
            missing.discard(kind)
            if not missing:
                break
        offset += (length + 3) & ~3
    return found


def u32(payload: bytes) -> int:
    """The number in an attribute's payload."""
    if len(payload) != 4:
        raise MalformedMessage(f"{len(payload)} bytes where a 32-bit number was expected")
    return int.from_bytes(payload, sys.byteorder)


def text(payload: bytes) -> str:
    """The string in an attribute's payload; bytes that are not UTF-8 survive escaped."""
    return payload.rstrip(b"\0").decode("utf-8", "backslashreplace")


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """(type, flags, sequence, port id, body) of each message in one datagram.

    Raises:
        MalformedMessage: a length is out of bounds.
    """
    offset, size = 0, len(data)
    while offset + 16 <= size:
        length, kind, flags, sequence, port_id = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > size:
            raise MalformedMessage(f"message of {length} bytes at {offset} of {size}")
        yield kind, flags, sequence, port_id, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def batches(sizes: Sequence[int], *, max_bytes: int, max_count: int) -> Iterator[tuple[int, int]]:
    """Cuts messages of these sizes into runs [start, stop) that fit one send each.

    A message bigger than ``max_bytes`` gets a run of its own; the kernel judges it.
    """
    start, used = 0, 0
    for index, size in enumerate(sizes):
        if index > start and (used + size > max_bytes or index - start >= max_count):
            yield start, index
            start, used = index, 0
        used += size
    if start < len(sizes):
        yield start, len(sizes)


def error_head(kind: int) -> int:
    """Bytes before the explanation: DONE has the code alone, ERROR also the request's header."""
    return 4 if kind == NLMSG_DONE else 20


def refusal_of(flags: int, payload: bytes, *, capped_bytes: int = 20) -> NetlinkError | None:
    """What an NLMSG_ERROR or NLMSG_DONE says; None is success."""
    if len(payload) < 4:
        return None
    (code,) = _I32.unpack_from(payload)
    if code >= 0:
        return None
    explanation = ""
    if flags & NLM_F_ACK_TLVS:
        # The explanation is for people; failing to read it must not hide the refusal.
        with contextlib.suppress(MalformedMessage):
            found = attributes(payload, capped_bytes)
            explanation = text(found.get(_NLMSGERR_ATTR_MSG, b""))
    return NetlinkError(-code, explanation)
