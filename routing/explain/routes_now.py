"""The kernel's routes and neighbours, asked about one packet: RTM_GETROUTE and RTM_GETNEIGH."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6

from cni import netlink as nl
from cni.netlink import NetlinkError
from cni.netlink_socket import NetlinkSocket
from routing.explain.evidence import Hop, KernelRoute, Lookup, Neighbour
from routing.routes import PROTOCOL, TABLE_MAIN, Address, Prefix
from routing.rtmessage import OUR_METRICS

RTM_GETNEIGH = 30
RTA_SRC, RTA_IIF, RTA_METRICS = 2, 3, 8
RTAX_MTU = 2
NDA_DST, NDA_LLADDR = 1, 2
NDMSG = struct.Struct("=BxHiHBB")
"""family, padding, index, state, flags, type (linux/neighbour.h)."""

_STATES = {
    0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE",
    0x20: "FAILED", 0x40: "NOARP", 0x80: "PERMANENT",
}  # fmt: skip
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole",
          7: "unreachable", 8: "prohibit", 9: "throw"}  # fmt: skip
_HOST_TABLE = 255
_VIA = struct.Struct("=H")


def look_up(
    socket: NetlinkSocket,
    role: str,
    destination: Address,
    *,
    source: Address | None = None,
    arrives_on: str | None = None,
) -> Lookup:
    """What the kernel does with this very packet, and the entry that decides.

    With ``arrives_on`` it is judged as one that comes in there: rp_filter and forwarding count.
    """
    told = Lookup(role, str(destination), None if source is None else str(source), arrives_on)
    request = _request(socket, destination, source, arrives_on)
    if request is None:
        return replace(told, error=f"no interface {arrives_on}")
    try:
        answer = socket.get(nl.RTM_GETROUTE, request(0))
    except NetlinkError as error:
        return replace(
            told,
            error=errno.errorcode.get(error.errno or 0, str(error.errno)),
            entry=_entry(socket, request(nl.RTM_F_FIB_MATCH)),
            towards_source=_towards(socket, source) if arrives_on and source else None,
        )
    parts = nl.attributes(answer, nl.RTMSG.size)
    if answer[7] not in (nl.RTN_UNICAST, nl.RTN_LOCAL):
        told = replace(told, error=_KINDS.get(answer[7], str(answer[7])))
    preferred = parts.get(nl.RTA_PREFSRC)
    metrics = nl.attributes(parts.get(RTA_METRICS, b""))
    return replace(
        told,
        hop=_hop(socket, parts),
        entry=_entry(socket, request(nl.RTM_F_FIB_MATCH)),
        preferred_source=str(ip_address(preferred)) if preferred else None,
        mtu_bytes=nl.u32(metrics[RTAX_MTU]) if RTAX_MTU in metrics else None,
    )


def _request(
    socket: NetlinkSocket,
    destination: Address,
    source: Address | None,
    arrives_on: str | None,
) -> Callable[[int], bytes] | None:
    family = AF_INET if destination.version == 4 else AF_INET6
    attributes = nl.attribute(nl.RTA_DST, destination.packed)
    if source is not None:
        attributes += nl.attribute(RTA_SRC, source.packed)
    if arrives_on is not None:
        ifindex = socket.ifindex(arrives_on)
        if ifindex is None:
            return None
        attributes += nl.attribute_u32(RTA_IIF, ifindex)
    source_length = 0 if source is None else source.max_prefixlen

    def request(flags: int) -> bytes:
        head = (family, destination.max_prefixlen, source_length, 0, 0, 0, 0, 0, flags)
        return nl.RTMSG.pack(*head) + attributes

    return request


def _towards(socket: NetlinkSocket, source: Address) -> Hop | None:
    return look_up(socket, "source", source).hop


def _entry(socket: NetlinkSocket, body: bytes) -> KernelRoute | None:
    try:
        return parse_entry(socket, socket.get(nl.RTM_GETROUTE, body))
    except NetlinkError:
        return None


def parse_entry(socket: NetlinkSocket, body: bytes) -> KernelRoute:
    """One RTM_NEWROUTE body, whoever's it is."""
    family, length, _src, _tos, table, protocol, _scope, kind, _flags = nl.RTMSG.unpack_from(body)
    parts = nl.attributes(body, nl.RTMSG.size)
    table = nl.u32(parts[nl.RTA_TABLE]) if nl.RTA_TABLE in parts else table
    metric = nl.u32(parts[nl.RTA_PRIORITY]) if nl.RTA_PRIORITY in parts else 0
    hops = [_hop(socket, parts)]
    if nl.RTA_MULTIPATH in parts:
        hops = [_hop(socket, each) for each in _multipath(parts[nl.RTA_MULTIPATH])]
    is_blackhole = kind in (6, 7, 8)
    return KernelRoute(
        prefix=str(_prefix(family, parts.get(nl.RTA_DST), length)),
        kind=_KINDS.get(kind, str(kind)),
        protocol=protocol,
        metric=metric,
        table=table,
        # IPv6 shows "lo" for a blackhole; it leads nowhere all the same.
        hops=() if is_blackhole else tuple(hop for hop in hops if hop is not None),
        is_ours=protocol == PROTOCOL and metric in OUR_METRICS and table == TABLE_MAIN,
    )


def _prefix(family: int, destination: bytes | None, length: int) -> Prefix:
    if family == AF_INET:
        return IPv4Network((destination or bytes(4), length))
    return IPv6Network((destination or bytes(16), length))


def _multipath(payload: bytes) -> Iterator[dict[int, bytes]]:
    offset = 0
    while offset + nl.RTNEXTHOP.size <= len(payload):
        length, _flags, _weight, ifindex = nl.RTNEXTHOP.unpack_from(payload, offset)
        if length < nl.RTNEXTHOP.size or offset + length > len(payload):
            raise nl.MalformedMessage(f"next hop of {length} bytes at {offset}")
        parts = nl.attributes(payload[offset + nl.RTNEXTHOP.size : offset + length])
        yield {**parts, nl.RTA_OIF: struct.pack("=i", ifindex)}
        offset += (length + 3) & ~3


def _hop(socket: NetlinkSocket, parts: dict[int, bytes]) -> Hop | None:
    oif = parts.get(nl.RTA_OIF)
    if not oif:
        return None
    ifindex = nl.u32(oif)
    return Hop(socket.ifname(ifindex) or f"index {ifindex}", _gateway(parts))


def _gateway(parts: dict[int, bytes]) -> str | None:
    packed = parts.get(nl.RTA_GATEWAY)
    if packed is None:
        via = parts.get(nl.RTA_VIA)
        if via is None:
            return None
        packed = via[_VIA.size :]
    return str(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed))


def covering(socket: NetlinkSocket, addresses: list[Address]) -> tuple[KernelRoute, ...]:
    """Every entry of every table but the local one that covers one of ``addresses``."""
    found: list[KernelRoute] = []
    for family, version in ((AF_INET, 4), (AF_INET6, 6)):
        wanted = [address for address in addresses if address.version == version]
        if not wanted:
            continue

        def concerns(body: bytes, family: int = family, wanted: list[Address] = wanted) -> bool:
            if body[0] != family or body[4] == _HOST_TABLE or len(body) < nl.RTMSG.size:
                return False
            parts = nl.attributes(body, nl.RTMSG.size, wanted=frozenset({nl.RTA_DST}))
            prefix = _prefix(family, parts.get(nl.RTA_DST), body[1])
            return any(address in prefix for address in wanted)

        head = nl.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        try:
            bodies = socket.dump(nl.RTM_GETROUTE, head, keep=concerns)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        found += [parse_entry(socket, body) for body in bodies]
    found.sort(key=lambda route: (-ip_network(route.prefix).prefixlen, route.metric))
    return tuple(found)


def neighbour(socket: NetlinkSocket, address: Address, ifname: str) -> Neighbour:
    """The neighbour entry of one address on one link; state "none" when there is none."""
    nothing = Neighbour(str(address), ifname, "none")
    ifindex = socket.ifindex(ifname)
    if ifindex is None:
        return nothing
    family = AF_INET if address.version == 4 else AF_INET6
    body = NDMSG.pack(family, 0, ifindex, 0, 0, 0) + nl.attribute(NDA_DST, address.packed)
    try:
        answer = socket.get(RTM_GETNEIGH, body)
    except NetlinkError:
        return nothing
    state = NDMSG.unpack_from(answer)[3]
    mac = nl.attributes(answer, NDMSG.size).get(NDA_LLADDR, b"")
    return Neighbour(
        str(address), ifname, _STATES.get(state, "none" if not state else str(state)),
        mac.hex(":") or None,
    )  # fmt: skip
