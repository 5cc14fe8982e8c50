"""The pod end of a link: the messages that configure it, and what differs from them. No I/O.

What we put into a pod's namespace is the least that works: an address of prefix length 32 (128),
the gateway as an on-link route, and default routes. Loopback is brought up too; it is the
runtime's job (the loopback plugin), and a pod whose runtime forgot it could not reach itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, AF_UNSPEC

from cni import netlink as nl
from cni.attachment import Address
from cni.hostend import GEN_MODE_NONE, IPV6_MIN_MTU_BYTES, HostEnd, set_up
from cni.netlink import Request, attribute, attribute_u32, nested
from cni.podlink import GATEWAY_V4, GATEWAY_V6, PodLink

LOOPBACK_UP = set_up(1)

_CREATE = nl.NLM_F_CREATE | nl.NLM_F_EXCL
_Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class PodRoute:
    """One unicast route of a pod's main table. ``scope`` is 0 in IPv6."""

    destination: _Network
    gateway: Address | None
    ifname: str
    scope: int

    def __str__(self) -> str:
        via = f"via {self.gateway} " if self.gateway is not None else ""
        scope = " scope link" if self.scope == nl.RT_SCOPE_LINK else ""
        return f"{via}dev {self.ifname}{scope}"


def wanted_routes(link: PodLink) -> list[PodRoute]:
    """Gateway before default: the kernel wants a gateway's own route to be there first."""
    return _wanted_routes(link.attachment.ifname, link.ipv4 is not None, link.ipv6 is not None)


def _wanted_routes(ifname: str, has_v4: bool, has_v6: bool) -> list[PodRoute]:
    routes: list[PodRoute] = []
    if has_v4:
        gateway = ip_network(f"{GATEWAY_V4}/32")
        default = ip_network("0.0.0.0/0")
        routes.append(PodRoute(gateway, None, ifname, nl.RT_SCOPE_LINK))
        routes.append(PodRoute(default, GATEWAY_V4, ifname, nl.RT_SCOPE_UNIVERSE))
    if has_v6:
        routes.append(PodRoute(ip_network("::/0"), GATEWAY_V6, ifname, nl.RT_SCOPE_UNIVERSE))
    return routes


def wanted_sysctls(link: PodLink) -> dict[str, str]:
    """Path below /proc/sys/net to value, of the pod's namespace, before the pod end goes up.

    Runtimes may turn IPv6 off in a new namespace; an address cannot be added then.
    """
    if link.ipv6 is None:
        return {}
    conf = f"ipv6/conf/{link.attachment.ifname}"
    return {f"{conf}/disable_ipv6": "0", f"{conf}/accept_ra": "0"}


def pod_requests(link: PodLink, ifindex: int, *, has_ipv6: bool) -> list[Request]:
    """Configures the pod end, in order; loopback is not among it (``LOOPBACK_UP``).

    Repeating it answers EEXIST for what is there.
    """
    is_mute = link.ipv6 is None and has_ipv6 and link.mtu_bytes >= IPV6_MIN_MTU_BYTES
    return [
        *_raised(ifindex, is_mute),
        *(_add_address(address, ifindex) for address in link.addresses),
        *_routes(ifindex, link.ipv4 is not None, link.ipv6 is not None),
    ]


@lru_cache(maxsize=64)
def _raised(ifindex: int, is_mute: bool) -> tuple[Request, ...]:
    up = (set_up(ifindex),)
    if not is_mute:
        return up
    # Nothing to speak IPv6 with: spares the pod a link-local address, its DAD and MLD.
    mode = attribute(nl.IFLA_INET6_ADDR_GEN_MODE, bytes([GEN_MODE_NONE]))
    body = nl.IFINFOMSG.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    body += nested(nl.IFLA_AF_SPEC, nested(AF_INET6, mode))
    return (Request(nl.RTM_SETLINK, 0, body), *up)


@lru_cache(maxsize=64)
def _routes(ifindex: int, has_v4: bool, has_v6: bool) -> tuple[Request, ...]:
    return tuple(_add_route(route, ifindex) for route in _wanted_routes("", has_v4, has_v6))


def _add_address(address: Address, ifindex: int) -> Request:
    family = AF_INET if address.version == 4 else AF_INET6
    body = nl.IFADDRMSG.pack(family, address.max_prefixlen, 0, nl.RT_SCOPE_UNIVERSE, ifindex)
    body += attribute(nl.IFA_LOCAL, address.packed) + attribute(nl.IFA_ADDRESS, address.packed)
    if address.version == 6:
        body += attribute_u32(nl.IFA_FLAGS, nl.IFA_F_NODAD)
    return Request(nl.RTM_NEWADDR, _CREATE, body)


def _add_route(route: PodRoute, ifindex: int) -> Request:
    network = route.destination
    body = nl.RTMSG.pack(
        AF_INET if network.version == 4 else AF_INET6,
        network.prefixlen,
        0,
        0,
        nl.RT_TABLE_MAIN,
        nl.RTPROT_BOOT,
        route.scope,
        nl.RTN_UNICAST,
        0,
    )
    if network.prefixlen:
        body += attribute(nl.RTA_DST, network.network_address.packed)
    if route.gateway is not None:
        body += attribute(nl.RTA_GATEWAY, route.gateway.packed)
    return Request(nl.RTM_NEWROUTE, _CREATE, body + attribute_u32(nl.RTA_OIF, ifindex))


def dump_main_table(family: int) -> bytes:
    """The body of a RTM_GETROUTE dump of a namespace's main table."""
    return nl.RTMSG.pack(family, 0, 0, 0, nl.RT_TABLE_MAIN, 0, 0, nl.RTN_UNICAST, 0)


# -- reading -----------------------------------------------------------------------------------


def parse_addresses(bodies: Iterable[bytes]) -> list[str]:
    """RTM_NEWADDR bodies of one interface as ``address/length``."""
    found: list[str] = []
    for body in bodies:
        parts = nl.attributes(body, nl.IFADDRMSG.size)
        packed = parts.get(nl.IFA_LOCAL) or parts.get(nl.IFA_ADDRESS)
        if packed:
            found.append(f"{ip_address(packed)}/{body[1]}")
    return found


def parse_route(body: bytes, names: dict[int, str]) -> PodRoute:
    """One RTM_NEWROUTE body; ``names`` maps an interface index to its name."""
    family, length = body[0], body[1]
    parts = nl.attributes(body, nl.RTMSG.size)
    destination = ip_address(parts.get(nl.RTA_DST) or bytes(4 if family == AF_INET else 16))
    gateway = parts.get(nl.RTA_GATEWAY)
    oif = parts.get(nl.RTA_OIF)
    ifindex = nl.u32(oif) if oif else 0
    return PodRoute(
        destination=ip_network(f"{destination}/{length}"),
        gateway=ip_address(gateway) if gateway else None,
        ifname=names.get(ifindex, f"index {ifindex}"),
        scope=body[6] if family == AF_INET else 0,
    )


def pod_differences(
    link: PodLink,
    *,
    found: HostEnd,
    is_peer: bool,
    addresses: list[str],
    routes: list[PodRoute],
) -> Iterator[str]:
    """One sentence for each thing in the pod that is not as ``link`` wants it.

    Addresses and routes that we did not ask for are not reported: plugins chained after us, and
    the pod itself if it is privileged, may add some.

    Args:
        is_peer: ``found`` is the other end of the link's host end, or there is no host end.
    """
    name = link.attachment.ifname
    where = f"{name} in the pod"
    if not is_peer:
        yield f"peer of {where}: expected {link.host_ifname}, found another link"
    if not found.is_up:
        yield f"state of {where}: expected UP, found DOWN"
    if found.mtu_bytes != link.mtu_bytes:
        yield f"MTU of {where}: expected {link.mtu_bytes}, found {found.mtu_bytes}"
    if link.mac not in (None, found.mac):
        yield f"MAC address of {where}: expected {link.mac}, found {found.mac}"
    for address in link.addresses:
        wanted = f"{address}/{address.max_prefixlen}"
        if wanted not in addresses:
            yield f"address of {where}: expected {wanted}, found {', '.join(addresses) or 'none'}"
    for route in wanted_routes(link):
        there = [each for each in routes if each.destination == route.destination]
        if route not in there:
            shown = ", ".join(str(each) for each in there) or "none"
            what = route.destination if route.destination.prefixlen else "default"
            family = f"IPv{route.destination.version}"
            yield f"{family} route {what} in the pod: expected {route}, found {shown}"
