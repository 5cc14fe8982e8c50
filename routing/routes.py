"""Kernel routes as values, keyed as the kernel keys them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

PROTOCOL = 132
"""Our route protocol number (rtm_protocol). Not in iproute2's table, and not 80 (Calico's)."""

METRIC = 1032
"""Our route metric. Not 1024: IPv6 gives that to every route added without a metric, and the
kernel keys a route by (table, destination, metric), so ours would collide with foreign ones."""

FRONT_METRIC = METRIC - 1
"""The metric of a route of ours whose ordinary place another program holds: the kernel prefers it,
and theirs stays as it is (routing/fronts.py). Still ours by its protocol."""

TABLE_MAIN = 254


class RouteKind(Enum):
    """What a route is for; for people and metrics, not stored in the kernel."""

    POD = "pod"
    BLOCK = "block"
    REMOTE = "remote"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, order=True)
class NextHop:
    """One way out. A gateway, an interface, or both; a pod's route has only the interface."""

    ifname: str
    gateway: Address | None = None


def next_hop_order(hop: NextHop) -> tuple[int, int, str]:
    """The order of a route's next hops, by address and not by text: one order everywhere, or a
    read-back differs from what was wanted for ever."""
    if hop.gateway is None:
        return (0, 0, hop.ifname)
    return (hop.gateway.version, int(hop.gateway), hop.ifname)


@dataclass(frozen=True, slots=True)
class RouteKey:
    """The kernel's FIB key (TOS is 0)."""

    prefix: Prefix
    metric: int = METRIC
    table: int = TABLE_MAIN


def in_front(key: RouteKey) -> RouteKey:
    """The place in front of ``key``, for when somebody else holds it."""
    return RouteKey(key.prefix, FRONT_METRIC, key.table)


def in_place(key: RouteKey) -> RouteKey:
    """The ordinary place of ``key``: the one that tables of routes go by, wherever the kernel has
    the route."""
    return RouteKey(key.prefix, METRIC, key.table) if key.metric == FRONT_METRIC else key


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours. No next hops means blackhole. ``next_hops`` is sorted, so that equality
    is the kernel's equality; ``kind`` is left out of the comparison, since a dump cannot tell."""

    key: RouteKey
    next_hops: tuple[NextHop, ...]

    @property
    def is_blackhole(self) -> bool:
        return not self.next_hops


@lru_cache(maxsize=2048)
def host_prefix(address: Address) -> Prefix:
    """The /32 or /128 of one address. Every pass asks for every pod's again."""
    # Of the number: of the address it would be made by way of text, at three times the cost.
    if isinstance(address, IPv4Address):
        return IPv4Network((int(address), 32))
    return IPv6Network((int(address), 128))


def next_hops_text(route: Route) -> str:
    """A route's next hops in a log line or a sentence."""
    if route.is_blackhole:
        return "blackhole"
    return " ".join(
        f"via {hop.gateway} dev {hop.ifname}" if hop.gateway else f"dev {hop.ifname}"
        for hop in route.next_hops
    )
