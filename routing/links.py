"""LinkState: one network interface of this node, as far as routing decisions need it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from routing.routes import Address

Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class LinkState:
    """``is_up`` is administratively up and with carrier: a next hop on it can be reached."""

    ifname: str
    ifindex: int
    is_up: bool
    mtu_bytes: int
    addresses: tuple[Interface, ...] = ()


def connected_link(gateway: Address, links: Mapping[str, LinkState]) -> str | None:
    """The up link that has ``gateway`` in one of its networks, the longest prefix first.

    None when the gateway is off-link: the kernel would refuse the route, and in a multipath it
    would take the good next hops down with it.
    """
    best: tuple[int, str] | None = None
    for ifname, link in links.items():
        if not link.is_up:
            continue
        for address in link.addresses:
            if gateway in address.network and gateway != address.ip:
                candidate = (address.network.prefixlen, ifname)
                best = candidate if best is None or candidate[0] > best[0] else best
    return best[1] if best else None


def local_addresses(links: Mapping[str, LinkState]) -> set[Address]:
    """Every address this node answers to, up or down."""
    return {address.ip for link in links.values() for address in link.addresses}


def link_of(address: Address, links: Mapping[str, LinkState]) -> LinkState | None:
    """The link that carries ``address``."""
    for link in links.values():
        if any(own.ip == address for own in link.addresses):
            return link
    return None
