"""Routes to rtnetlink messages and back. No I/O.

IPv4 carries one message a route; a multipath is one attribute in it, and so it is in IPv6 dumps
since the kernel folds siblings. A v4 prefix may have a v6 gateway (RFC 8950, RTA_VIA).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET, AF_INET6

from bgp.nlri import Nlri
from cni import netlink as nl
from cni.netlink import Request, attribute, attribute_u32
from routing.next_hops import KernelRoute
from routing.routes import (
    FRONT_METRIC,
    METRIC,
    PROTOCOL,
    TABLE_MAIN,
    Address,
    NextHop,
    Prefix,
    Route,
    RouteKey,
    next_hop_order,
)

_IndexOf = Callable[[str], int | None]
_NameOf = Callable[[int], str | None]

_VIA_FAMILY = struct.Struct("=H")

RTA_NH_ID = 30

_HEAD_V4 = nl.ATTRIBUTE.pack(8, nl.RTA_DST)
_HEAD_V6 = nl.ATTRIBUTE.pack(20, nl.RTA_DST)
_HEAD_METRIC = nl.ATTRIBUTE.pack(8, nl.RTA_PRIORITY) + struct.pack("=I", METRIC)
OUR_METRICS = (METRIC, FRONT_METRIC)
_HEAD_GROUP = nl.ATTRIBUTE.pack(8, RTA_NH_ID)

_PROTOCOL_NAMES = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    11: "zebra",
    12: "bird",
    16: "dhcp",
    18: "keepalived",
    42: "babel",
    80: "calico",
    PROTOCOL: "slash32",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}


Place = tuple[int, bytes, int]
"""A destination as messages carry it: IP version, address bytes, prefix length."""


def place_of(key: RouteKey) -> Place:
    """The destination of ``key``."""
    return (key.prefix.version, key.prefix.network_address.packed, key.prefix.prefixlen)


class UnknownInterface(ValueError):
    """A next hop names an interface that does not exist."""


def protocol_name(protocol: int) -> str:
    """A route protocol as people call it, after iproute2's rt_protos."""
    return _PROTOCOL_NAMES.get(protocol, "unknown")


@dataclass(frozen=True, slots=True)
class Holder:
    """A route of any protocol that holds, or may hold, a key."""

    place: Place
    protocol: int
    metric: int
    tos: int
    body: bytes

    @property
    def is_ours(self) -> bool:
        return self.protocol == PROTOCOL and self.metric in OUR_METRICS

    @property
    def words(self) -> str:
        """Who it is, for people."""
        return f"protocol {self.protocol} ({protocol_name(self.protocol)}) at metric {self.metric}"

    def route(self, name_of: _NameOf) -> Route | None:
        """The whole route; None when it is not ours or its interface is gone."""
        return parse_route(self.body, name_of)


# -- packing -----------------------------------------------------------------------------------


def dump_body(family: int, *, protocol: int) -> bytes:
    """The body of a RTM_GETROUTE dump of the main table; protocol 0 is every protocol's."""
    return nl.RTMSG.pack(family, 0, 0, 0, TABLE_MAIN, protocol, 0, 0, 0)


def new_route(route: Route, index_of: _IndexOf, flags: int, *, group: int = 0) -> Request:
    """RTM_NEWROUTE for ``route``; with a ``group``, by that nexthop object instead of its hops.

    Raises:
        UnknownInterface: a next hop's interface does not exist.
        ValueError: the key is not one we may write, or an IPv6 prefix has an IPv4 gateway.
    """
    _check_key(route.key)
    prefix, hops = route.key.prefix, route.next_hops
    kind, scope = nl.RTN_UNICAST, nl.RT_SCOPE_UNIVERSE
    if not hops:
        kind = nl.RTN_BLACKHOLE
    elif all(hop.gateway is None for hop in hops):
        # An IPv4 next hop without a gateway is on the link itself; IPv6 knows no scope here.
        scope = nl.RT_SCOPE_LINK
    body = _head(prefix, scope, kind, route.key.metric)
    if group:
        body += attribute_u32(RTA_NH_ID, group)
    elif len(hops) == 1:
        body += attribute_u32(nl.RTA_OIF, _index(hops[0], index_of))
        body += _gateway(prefix, hops[0].gateway)
    elif hops:
        parts = [_multipath_part(prefix, hop, index_of) for hop in hops]
        body += attribute(nl.RTA_MULTIPATH, b"".join(parts))
    return Request(nl.RTM_NEWROUTE, flags, body)


def new_pod_route(key: RouteKey, ifindex: int) -> Request:
    """What ``new_route`` makes of a route over one link without a gateway, to be made anew; every
    ADD needs one.

    Raises:
        ValueError: the key is not one we may write.
    """
    _check_key(key)
    body = _head(key.prefix, nl.RT_SCOPE_LINK, nl.RTN_UNICAST)
    body += attribute_u32(nl.RTA_OIF, ifindex)
    return Request(nl.RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def delete_route(key: RouteKey) -> Request:
    """RTM_DELROUTE that matches only our protocol and the key's metric, whatever the next hops."""
    return Request(nl.RTM_DELROUTE, 0, _head(key.prefix, nl.RT_SCOPE_NOWHERE, 0, key.metric))


def grouped_routes(
    nlris: Sequence[Nlri], kind: int, flags: int, group: int = 0
) -> tuple[bytearray, int]:
    """Whole messages, without sequence numbers, about routes of one length and family.

    Column by column and not one by one: twenty times as fast, and what is left is the kernel's.

    Args:
        nlris: the destinations, all of one length and family, at least one.
        kind: RTM_NEWROUTE, to the nexthop group ``group``; or RTM_DELROUTE.

    Returns:
        (the messages one after the other, the size of each).
    """
    size, length = len(nlris[0]) - 1, nlris[0][0]
    family = AF_INET if size == 4 else AF_INET6
    scope, route = nl.RT_SCOPE_UNIVERSE, nl.RTN_UNICAST
    if kind == nl.RTM_DELROUTE:
        scope, route = nl.RT_SCOPE_NOWHERE, 0
    body = nl.RTMSG.pack(family, length, 0, 0, TABLE_MAIN, PROTOCOL, scope, route, 0)
    at = nl.HEADER.size + len(body) + nl.ATTRIBUTE.size
    if length:
        body += nl.ATTRIBUTE.pack(nl.ATTRIBUTE.size + size, nl.RTA_DST) + bytes(size)
    body += _HEAD_METRIC
    if group:
        body += attribute_u32(RTA_NH_ID, group)
    total = nl.HEADER.size + len(body)
    one = nl.HEADER.pack(total, kind, flags | nl.NLM_F_REQUEST, 0, 0) + body
    messages = bytearray(one * len(nlris))
    if length:
        places = b"".join(nlris)
        for octet in range(size):
            messages[at + octet :: total] = places[1 + octet :: size + 1]
    return messages, total


def _head(prefix: Prefix, scope: int, kind: int, metric: int = METRIC) -> bytes:
    family = AF_INET if prefix.version == 4 else AF_INET6
    body = nl.RTMSG.pack(family, prefix.prefixlen, 0, 0, TABLE_MAIN, PROTOCOL, scope, kind, 0)
    if prefix.prefixlen:
        body += attribute(nl.RTA_DST, prefix.network_address.packed)
    return body + attribute_u32(nl.RTA_PRIORITY, metric)


def _check_key(key: RouteKey) -> None:
    if key.metric not in OUR_METRICS or key.table != TABLE_MAIN:
        raise ValueError(
            f"only metric {METRIC} in table {TABLE_MAIN} is ours to write, "
            f"not metric {key.metric} in table {key.table}"
        )


def _index(hop: NextHop, index_of: _IndexOf) -> int:
    ifindex = index_of(hop.ifname)
    if ifindex is None:
        raise UnknownInterface(f"interface {hop.ifname} does not exist")
    return ifindex


def _gateway(prefix: Prefix, gateway: Address | None) -> bytes:
    if gateway is None:
        return b""
    if gateway.version == prefix.version:
        return attribute(nl.RTA_GATEWAY, gateway.packed)
    if prefix.version == 6:
        raise ValueError(f"IPv4 gateway {gateway} for an IPv6 prefix")
    return attribute(nl.RTA_VIA, _VIA_FAMILY.pack(AF_INET6) + gateway.packed)


def _multipath_part(prefix: Prefix, hop: NextHop, index_of: _IndexOf) -> bytes:
    gateway = _gateway(prefix, hop.gateway)
    size = nl.RTNEXTHOP.size + len(gateway)
    return nl.RTNEXTHOP.pack(size, 0, 0, _index(hop, index_of)) + gateway


# -- parsing -----------------------------------------------------------------------------------


def parse_holder(body: bytes) -> Holder:
    """Destination, protocol and metric of any RTM_NEWROUTE body."""
    family, length, _src, tos, _table, protocol, _scope, _kind, _flags = nl.RTMSG.unpack_from(body)
    parts = nl.attributes(body, nl.RTMSG.size)
    version, size = (4, 4) if family == AF_INET else (6, 16)
    priority = parts.get(nl.RTA_PRIORITY)
    return Holder(
        place=(version, parts.get(nl.RTA_DST) or bytes(size), length),
        protocol=protocol,
        metric=nl.u32(priority) if priority else 0,
        tos=tos,
        body=body,
    )


def slice_grouped(body: bytes) -> tuple[bytes, int] | None:
    """(destination as length and address, nexthop id) of a dumped route of ours that names a group.

    Only where the kernel puts things in the order it always has; None sends the caller to
    parse_route. A whole parse takes thirty times as long, and a table has 100,000 of them.
    """
    if body[0] == AF_INET:
        if body[20:24] != _HEAD_V4 or body[28:40] != _HEAD_METRIC + _HEAD_GROUP:
            return None
        return body[1:2] + body[24:28], int.from_bytes(body[40:44], sys.byteorder)
    if body[20:24] != _HEAD_V6 or body[40:52] != _HEAD_METRIC + _HEAD_GROUP:
        return None
    return body[1:2] + body[24:40], int.from_bytes(body[52:56], sys.byteorder)


def parse_route(body: bytes, name_of: _NameOf) -> Route | None:
    """The route of one RTM_NEWROUTE body, with the metric it has there; None when it is not ours.

    Also None when an interface is gone already: the kernel is taking the route away.
    """
    if body[5] != PROTOCOL or body[4] != TABLE_MAIN:
        return None
    parts = nl.attributes(body, nl.RTMSG.size)
    priority = parts.get(nl.RTA_PRIORITY)
    if priority is None or (metric := nl.u32(priority)) not in OUR_METRICS:
        return None
    key = RouteKey(_prefix(body[0], parts.get(nl.RTA_DST), body[1]), metric)
    if body[7] == nl.RTN_BLACKHOLE:
        return Route(key, ())
    if body[7] != nl.RTN_UNICAST:
        return None
    multipath = parts.get(nl.RTA_MULTIPATH)
    found = list(_hops(multipath)) if multipath else [(parts.get(nl.RTA_OIF), parts)]
    hops: list[NextHop] = []
    for ifindex, attributes in found:
        name = name_of(nl.u32(ifindex)) if ifindex else None
        if name is None:
            return None
        hops.append(NextHop(name, _parse_gateway(attributes)))
    return Route(key, tuple(sorted(hops, key=next_hop_order)))


def parse_way(body: bytes, name_of: _NameOf) -> KernelRoute | None:
    """The kernel's answer to a look-up that asked for the matching route; None when it is our own
    route, leads nowhere, or its interface is gone already."""
    if body[5] == PROTOCOL or body[7] != nl.RTN_UNICAST:
        return None
    parts = nl.attributes(body, nl.RTMSG.size)
    multipath = parts.get(nl.RTA_MULTIPATH)
    found = list(_hops(multipath)) if multipath else [(parts.get(nl.RTA_OIF), parts)]
    hops = tuple(
        NextHop(name, _parse_gateway(attributes))
        for ifindex, attributes in found
        if ifindex and (name := name_of(nl.u32(ifindex))) is not None
    )
    return KernelRoute(body[1], hops) if hops else None


def _hops(multipath: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    offset = 0
    while offset + nl.RTNEXTHOP.size <= len(multipath):
        (length,) = _VIA_FAMILY.unpack_from(multipath, offset)
        if length < nl.RTNEXTHOP.size or offset + length > len(multipath):
            raise nl.MalformedMessage(f"next hop of {length} bytes at {offset}")
        yield (
            multipath[offset + 4 : offset + 8],
            nl.attributes(multipath[offset + nl.RTNEXTHOP.size : offset + length]),
        )
        offset += (length + 3) & ~3


def _prefix(family: int, destination: bytes | None, length: int) -> Prefix:
    if family == AF_INET:
        return IPv4Network((destination or bytes(4), length))
    return IPv6Network((destination or bytes(16), length))


def _parse_gateway(parts: dict[int, bytes]) -> Address | None:
    packed = parts.get(nl.RTA_GATEWAY)
    if packed is None:
        via = parts.get(nl.RTA_VIA)
        if via is None:
            return None
        packed = via[_VIA_FAMILY.size :]
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
