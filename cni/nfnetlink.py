"""What nftables and conntrack add to netlink: a subsystem in the type, nfgenmsg in front. No I/O.

Numbers in these messages are big endian, unlike rtnetlink's (linux/netfilter/nfnetlink.h).
"""

from __future__ import annotations

from cni.netlink import MalformedMessage

NETLINK_NETFILTER = 12
"""The protocol of the socket; Python's socket module does not name it."""

NFGENMSG_BYTES = 4

NFNL_SUBSYS_CTNETLINK = 1
NFNL_SUBSYS_NFTABLES = 10

NLA_F_NESTED = 0x8000
"""ctnetlink refuses nested attributes without it."""


def message_type(subsystem: int, message: int) -> int:
    """The type of a netlink message: subsystem above, its own message below."""
    return subsystem << 8 | message


def nfgenmsg(family: int) -> bytes:
    """struct nfgenmsg: family, version 0, resource 0."""
    return bytes((family, 0, 0, 0))


def big_u32(payload: bytes) -> int:
    """The number in an attribute's payload.

    Raises:
        MalformedMessage: it is not four bytes long.
    """
    if len(payload) != 4:
        raise MalformedMessage(f"{len(payload)} bytes where a 32-bit number was expected")
    return int.from_bytes(payload, "big")
