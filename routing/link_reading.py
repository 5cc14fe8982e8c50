"""Links and their addresses from rtnetlink."""

from __future__ import annotations

from dataclasses import replace
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


class LinkReader:
    """Reads every link; one that the kernel describes as last time is not parsed again."""

    def __init__(self) -> None:
        self._parsed: dict[bytes, LinkState] = {}

    def read(self, socket: NetlinkSocket) -> dict[str, LinkState]:
        """Every link with its addresses, by name.

        Raises:
            NetlinkError: the kernel gave no consistent table.
        """
        addresses = read_addresses(socket)
        request = nl.IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
        request += nl.attribute_u32(nl.IFLA_EXT_MASK, nl.RTEXT_FILTER_SKIP_STATS)
        parsed = self._parsed
        seen = {
            body: parsed.get(body) or parse_link(body)
            for body in socket.dump(nl.RTM_GETLINK, request)
        }
        self._parsed = seen
        return {
            link.ifname: replace(link, addresses=tuple(own))
            if (own := addresses.get(link.ifindex))
            else link
            for link in seen.values()
        }
