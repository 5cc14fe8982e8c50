"""Links and their addresses from rtnetlink."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from socket import AF_UNSPEC

from cni import netlink as nl
from cni.netlink_socket import NetlinkSocket
from routing.links import Interface, LinkState

_LINK_WANTED = frozenset({nl.IFLA_IFNAME, nl.IFLA_MTU})


def read_addresses(socket: NetlinkSocket) -> dict[int, list[Interface]]:
    """The addresses of every interface, by its index.

    Raises:
        NetlinkError: the kernel gave no consistent table.
    """
    addresses: dict[int, list[Interface]] = {}
    for body in socket.dump(nl.RTM_GETADDR, nl.IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0)):
        _family, length, _flags, _scope, ifindex = nl.IFADDRMSG.unpack_from(body)
        parts = nl.attributes(body, nl.IFADDRMSG.size)
        # On a point-to-point link ADDRESS is the other end; LOCAL is always ours where present.
        packed = parts.get(nl.IFA_LOCAL) or parts.get(nl.IFA_ADDRESS)
        if packed:
            own = ip_interface(f"{ip_address(packed)}/{length}")
            addresses.setdefault(ifindex, []).append(own)
    return addresses


def parse_link(body: bytes) -> LinkState:
    """One RTM_NEWLINK body, without its addresses."""
    _family, _type, ifindex, flags, _change = nl.IFINFOMSG.unpack_from(body)
    parts = nl.attributes(body, nl.IFINFOMSG.size, wanted=_LINK_WANTED)
    return LinkState(
        ifname=nl.text(parts[nl.IFLA_IFNAME]),
        ifindex=ifindex,
        is_up=bool(flags & nl.IFF_UP and flags & nl.IFF_LOWER_UP),
        mtu_bytes=nl.u32(parts[nl.IFLA_MTU]),
    )
